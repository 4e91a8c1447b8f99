"""The output change of pruned networks, measured and predicted, and their accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.stats import Estimate
from tpv.estimation.linearity import linearity
from tpv.model.batches import call_model, chunks
from tpv.model.labels import correct_predictions
from tpv.model.linearization import Forward
from tpv.model.outputs import Output, OutputSpec, mask_of
from tpv.model.twin import make_twin
from tpv.perturbations import Masking
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import Removed, masks
from tpv.results import LinearityResult

_EXAMPLES_AT_ONCE = 128


class OutputChangeMeter:
    """The unpruned network's outputs on batches, to measure pruned versions against; accuracy with labels."""

    def __init__(
        self, model: nn.Module, data: Sequence[Any], output: Output, forward: Forward | None
    ) -> None:
        self._parts = [part for batch in data for part in chunks(batch, _EXAMPLES_AT_ONCE)]
        self._output, self._run = output, forward or call_model
        self._before = list(self._outputs(model))

    def _outputs(self, model: nn.Module) -> Iterator[Tensor]:
        for part in self._parts:
            with torch.no_grad():
                f = self._output.select(self._run(model, part))
            yield f

    def __call__(self, model: nn.Module) -> tuple[Estimate, Estimate | None]:
        """E‖Δf‖² (padded positions do not count) and the accuracy, None without labels."""
        changes: list[Tensor] = []
        correct: list[Tensor | None] = []
        for part, before, after in zip(self._parts, self._before, self._outputs(model), strict=True):
            change = self._output.divergence(before, after)
            padding = mask_of(part, change)
            change = change if padding is None else change * padding
            changes.append(change.reshape(len(change), -1).sum(1).cpu())
            correct.append(correct_predictions(after, part))
        return _mean(torch.cat(changes)), _accuracy(correct)

    @property
    def unpruned_accuracy(self) -> Estimate | None:
        """Of the unpruned network; None without labels."""
        pairs = zip(self._parts, self._before, strict=True)
        return _accuracy([correct_predictions(f, part) for part, f in pairs])


def _accuracy(correct: Sequence[Tensor | None]) -> Estimate | None:
    known = [hits.cpu() for hits in correct if hits is not None]
    return _mean(torch.cat(known)) if known else None


def _mean(values: Tensor) -> Estimate:
    """The mean over examples with its standard error."""
    n = len(values)
    stderr = values.double().std().item() / math.sqrt(n) if n > 1 else math.nan
    return Estimate(values.double().mean().item(), stderr, 0.0)


def predict(
    model: nn.Module,
    data: Sequence[Any],
    groups: Sequence[ChannelGroup],
    removed: Removed,
    output: OutputSpec,
    forward: Forward | None,
) -> LinearityResult:
    """The output change of a removal before it is done: δ = −w for every weight that takes a removed channel
    as input.

    Cost: one Jacobian-vector product and one forward pass.
    """
    trainable = make_twin(model, frozen_gradients=True).model
    return linearity(trainable, data, Masking(masks(model, groups, removed)), output=output, forward=forward)
