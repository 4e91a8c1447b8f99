"""The cotangents of a criterion, and what it keeps of the unpruned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from tpv.common.counters import cotangents, seed_of
from tpv.common.errors import TPVError
from tpv.estimation.loop import Seed, as_generator
from tpv.estimators.base import Chunk
from tpv.model.batches import batches, chunks
from tpv.model.checks import check_model
from tpv.model.linearization import Forward, Linearization, masked
from tpv.model.outputs import as_output
from tpv.model.twin import twin_of
from tpv.pruning.scores.criteria import Criterion

_EXAMPLES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Frozen:
    """What a criterion keeps of the unpruned model, batch by batch.

    Attributes:
        labels: (N, ...) classes; None for a criterion without.
        outputs: (N, ...), for criteria with interactions: the output change so far counts in the next
            removal. None for others.
    """

    labels: Sequence[Tensor] | None = None
    outputs: Sequence[Tensor] | None = None


def freeze(model: nn.Module, data: object, criterion: Criterion, *, forward: Forward | None = None) -> Frozen:
    """What a criterion keeps of the model as it is now, for scores of its pruned versions.

    Args:
        model, data, criterion, forward: as in :func:`tpv.pruning.score`; the data must come in the same order
            at every reading.

    Raises:
        TPVError: for data that comes in another order at every reading.

    Cost: one forward pass; none for a criterion that keeps nothing.

    Example:
        >>> import torch, tpv.pruning
        >>> model, x = torch.nn.Linear(3, 2).eval(), torch.randn(5, 3)
        >>> [labels] = tpv.pruning.freeze(model, x, tpv.pruning.JBR()).labels
        >>> bool((labels == model(x).argmax(1)).all())
        True
    """
    if not (criterion.freezes or criterion.interactions):
        return Frozen()
    if isinstance(getattr(data, "sampler", None), RandomSampler):
        raise TPVError(
            "the data must come in the same order each time, and this loader shuffles: give shuffle=False, "
            "or list(loader)."
        )
    outputs, labels = [], []
    with linearized(model, criterion, forward) as lin, torch.no_grad():
        for batch in batches(data):
            f = torch.cat([lin.outputs(part, {}) for part in chunks(batch, _EXAMPLES_AT_ONCE)])
            if criterion.interactions:
                outputs.append(f)
            if criterion.freezes and (classes := criterion.labels(f, batch)) is not None:
                labels.append(classes)
    return Frozen(labels or None, outputs or None)


@contextmanager
def linearized(model: nn.Module, criterion: Criterion, forward: Forward | None) -> Iterator[Linearization]:
    """The model at a fixed point, in the criterion's output space."""
    if not isinstance(criterion, Criterion):
        raise TPVError(
            f"criterion must be one of tpv.pruning.TPVImportance(), JBR() and JC(), got {criterion!r}."
        )
    check_model(model)
    with twin_of(model, forward) as (twin, remapped):
        yield Linearization(twin, remapped, as_output(criterion.output))


class Cotangents:
    """The vectors v of a criterion for examples one after another, whatever the chunks they come in."""

    def __init__(self, criterion: Criterion, seed: Seed, frozen: Frozen | None) -> None:
        self._criterion, self._frozen = criterion, frozen or Frozen()
        self._seed = seed_of(as_generator(seed))

    def __call__(self, f: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """v (N, R, ...) at outputs f (N, ...), and which of the examples count."""
        labels = _of_chunk(self._frozen.labels, chunk, f)
        if labels is None:
            labels = self._criterion.labels(f, chunk.batch)
        if labels is not None:
            counted = (labels >= 0).reshape(len(f), -1).any(1)
            return self._criterion.directions(f, labels).unsqueeze(1), counted
        k = f[0].numel()
        drawn = cotangents(self._seed, chunk.rows(f.device), self._criterion.probes, k)
        v = torch.stack([v.to(f) for v in drawn], 1).reshape(len(f), -1, *f.shape[1:])
        return v, f.new_ones(len(f), dtype=torch.bool)

    def output_change(self, lin: Linearization, f: Tensor, chunk: Chunk) -> Tensor:
        """z(f) − z(unpruned model's f), (N, ...), in the output space; zero where no outputs are kept."""
        before = _of_chunk(self._frozen.outputs, chunk, f)
        if before is None:
            return torch.zeros_like(f)
        z = lin.output.coordinates
        return masked(z(f, f) - z(before, f), chunk.batch)


def _of_chunk(values: Sequence[Tensor] | None, chunk: Chunk, f: Tensor) -> Tensor | None:
    """The part of what is kept of each batch that belongs to a chunk."""
    if values is None:
        return None
    if chunk.number >= len(values) or len(values[chunk.number]) != chunk.size:
        raise TPVError(
            "the data has changed since the unpruned model saw it: give the same batches in the same order."
        )
    return values[chunk.number][chunk.start : chunk.start + chunk.n].to(f.device)
