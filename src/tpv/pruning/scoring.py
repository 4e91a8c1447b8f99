"""Channel scores: per example, exact, from backward passes without weight gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from tpv._batches import batch_size, batches, ends, narrow, twice
from tpv._errors import TPVError
from tpv._guard import unchanged
from tpv.accumulation import Progress, Seed, accumulate
from tpv.checks import check_model
from tpv.estimators.base import TOTAL, Contribution, Piece, Procedure
from tpv.estimators.hutchinson import Drawing
from tpv.linearization import Forward, Linearization
from tpv.outputs import as_output
from tpv.pruning.criteria import IGNORED, Criterion, TPVImportance
from tpv.pruning.groups import ChannelGroup
from tpv.pruning.scores import ChannelScores, Sums
from tpv.pruning.taps import Site, Tap, taps
from tpv.sweep.layer import tolerance

Labels = Sequence[Tensor]
"""Frozen labels, batch by batch."""


def score(
    model: nn.Module,
    data: object,
    groups: Sequence[ChannelGroup],
    criterion: Criterion | None = None,
    *,
    labels: Labels | None = None,
    forward: Forward | None = None,
    generator: Seed = 0,
    progress: Progress | None = None,
    chunk_size: int | None = None,
) -> ChannelScores:
    r"""The score of every channel: how far the predictions move without it, to first order and per example.

    .. math:: \mathrm{score}(g) = E_x \frac1R \sum_r (v_r^\top J_g(x) w_g)^2

    Nothing but activations and their gradients is needed: where a layer reads channel c, :math:`v^\top J_g w_g = \sum a_c \,
    \partial(v^\top f)/\partial a_c` over positions, with the gradient through this layer alone; where it writes c, the same
    with its output. The model is left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode.
        data: unlabelled inputs (labelled for :class:`JC`), as in :func:`tpv.estimate`.
        groups: what can be removed; :func:`tpv.integrations.torch_pruning.channel_groups` finds it.
        criterion: by default :class:`TPVImportance`.
        labels: from :func:`freeze`, for a model that is no longer the unpruned one; by default this model is.
        forward, generator, progress, chunk_size: as in :func:`tpv.estimate`.

    Returns:
        Scores with standard errors over examples, and how well two halves of the examples agree on the ranking.

    Raises:
        TPVError: for input that cannot give a meaningful number; for NaN; for a layer whose rows cannot be told apart by example.

    Cost per example: one forward pass and R backward passes to activations, about 1 forward+backward pass for R = 1.

    Source: D. Arpit, arXiv 2512.11089 (JBR, JC).

    Example:
        >>> import torch, tpv
        >>> from tpv.pruning import ChannelGroup, Member, score
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
        >>> c = torch.arange(4)
        >>> hidden = ChannelGroup("0", 4, (Member("0", "producer", c, c), Member("2", "consumer", c, c)))
        >>> scores = score(model, torch.randn(100, 8), [hidden])
        >>> scores["0"].value.shape, scores.metadata["criterion"]
        (torch.Size([4]), "TPVImportance(probes=1, members='consumers', squares='joint', output='logits')")
    """
    started = time.perf_counter()
    criterion = criterion or TPVImportance()
    if not groups:
        raise TPVError("there is no group of channels to score.")
    with _ready(model, criterion, forward) as lin:
        run = accumulate(lin, batches(data), lambda _: _Scoring(lin, criterion, groups, labels, generator), chunk_size, progress)
    procedure = run.procedure
    assert isinstance(procedure, _Scoring)
    procedure.check_complete()
    if not procedure.sums.count:
        raise TPVError(f"no example counts for {criterion!r}: all are below the confidence or ignored.")
    metadata = run.metadata(generator, started, criterion=repr(criterion), examples=procedure.sums.count)
    return ChannelScores.from_sums([g.name for g in groups], [g.width for g in groups], procedure.sums, metadata)


def freeze(model: nn.Module, data: object, criterion: Criterion, *, forward: Forward | None = None) -> Labels | None:
    """The labels of a criterion from the model as it is now, batch by batch, for scores of its pruned versions.

    Args:
        model, data, criterion, forward: as in :func:`score`; the data must come in the same order at every reading.

    Returns:
        One tensor (N, ...) for each batch; None for a criterion whose labels do not depend on the model.

    Raises:
        TPVError: for data that comes in another order at every reading.

    Cost: one forward pass.

    Example:
        >>> import torch, tpv.pruning
        >>> model, x = torch.nn.Linear(3, 2).eval(), torch.randn(5, 3)
        >>> [labels] = tpv.pruning.freeze(model, x, tpv.pruning.JBR())
        >>> bool((labels == model(x).argmax(1)).all())
        True
    """
    if not criterion.freezes:
        return None
    if isinstance(getattr(data, "sampler", None), RandomSampler):
        raise TPVError(
            "frozen labels need the data in the same order at every reading, and this loader shuffles: give shuffle=False, or list(loader)."
        )
    with _ready(model, criterion, forward) as lin, torch.no_grad():
        return [_labels(criterion, lin, batch) for batch in batches(data)]


def _labels(criterion: Criterion, lin: Linearization, batch: Any) -> Tensor:
    size = batch_size(batch)
    parts = [narrow(batch, i, min(i + 64, size), size) for i in range(0, size, 64)]
    found = [criterion.labels(lin.displaced(part, {}), part) for part in parts]
    return torch.cat([part for part in found if part is not None])


@contextmanager
def _ready(model: nn.Module, criterion: Criterion, forward: Forward | None) -> Iterator[Linearization]:
    if not isinstance(criterion, Criterion):
        raise TPVError(f"criterion must be one of tpv.pruning.TPVImportance(), JBR() and JC(), got {criterion!r}.")
    check_model(model)
    with unchanged(model):
        yield Linearization(model, forward, as_output(criterion.output))


class _Scoring(Procedure):
    """Terms vᵀJ_g w_g of each example and channel, squared and summed."""

    def __init__(self, lin: Linearization, criterion: Criterion, groups: Sequence[ChannelGroup], labels: Labels | None, seed: Seed) -> None:
        self._lin, self._criterion, self._groups, self._labels = lin, criterion, groups, labels
        self.names, self.method = [TOTAL], repr(criterion)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        self._probes = Drawing(criterion.probes, generator)
        self._chosen = [group.chosen(criterion.members) for group in groups]
        self._sites: set[Site] = {(m.module, m.role) for chosen in self._chosen for m in chosen}
        self._copied: set[Site] = set()
        self._reached: set[Site] = set()
        self._verified = False
        self.sums = Sums.zero(sum(group.width for group in groups))

    def contribution(self, piece: Piece) -> Contribution:
        if not self._verified:
            self._verify(piece)
        scores, counted = self._scores(piece)
        self.sums.add(scores, counted)
        return Contribution(scores.sum(1, keepdim=True))

    def check_complete(self) -> None:
        """Refuse scores that are zero because a layer was never run."""
        if missing := sorted(name for name, _ in self._sites - self._reached):
            raise TPVError(
                f"{missing[0]} was not called as a module on this data, so that its weights cannot be scored: "
                "leave its group out, or give data that reaches it."
            )

    def _scores(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """(N, channels) and which examples count."""
        with self._tapped(piece.batch) as (f, found):
            v, counted = self._cotangents(f.detach(), piece)
            total = torch.zeros(len(f), sum(group.width for group in self._groups), dtype=torch.float64, device=f.device)
            for r in range(v.shape[1]):
                total += self._squares(self._terms(f, found, v[:, r], last=r == v.shape[1] - 1), len(f))
        return (total / v.shape[1] * counted.unsqueeze(1)).cpu(), counted.cpu()

    @contextmanager
    def _tapped(self, batch: Any) -> Iterator[tuple[Tensor, list[Tap]]]:
        """Outputs with a graph, and the activations that members read or write.

        An example that needs company is there twice, and its output is the mean of both: whichever rows are whose, sums over all are its.
        """
        alone = self._lin.needs_company(batch)
        with torch.enable_grad(), taps(self._lin.model, self._sites, self._copied) as found:
            f = self._lin(twice(batch)).mean(0, keepdim=True) if alone else self._lin(batch)
            stale = {tap.site for tap in found if tap.stale}
        self._reached |= {tap.site for tap in found}
        if stale:
            self._copied |= stale
            with self._tapped(batch) as again:
                yield again
        else:
            yield f, found

    def _cotangents(self, f: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """(N, R, ...) and which examples count."""
        everyone = torch.ones(len(f), dtype=torch.bool, device=f.device)
        frozen = self._frozen(piece)
        labels = frozen if frozen is not None else self._criterion.labels(f, piece.batch)
        if labels is None:
            k = f[0].numel()
            return self._probes(piece, k)[:, : min(self._criterion.probes, k)].to(f).reshape(len(f), -1, *f.shape[1:]), everyone
        labels = labels.to(f.device)
        return self._criterion.directions(f, labels).unsqueeze(1), (labels != IGNORED).reshape(len(f), -1).any(1)

    def _frozen(self, piece: Piece) -> Tensor | None:
        if self._labels is None or not self._criterion.freezes:
            return None
        labels = self._labels[piece.number] if piece.number < len(self._labels) else torch.empty(0)
        if len(labels) != piece.size:
            raise TPVError("the data has changed since the labels were frozen: give the same batches in the same order.")
        return labels[piece.start : piece.start + piece.n]

    def _terms(self, f: Tensor, found: list[Tap], v: Tensor, *, last: bool, absolute: bool = False) -> dict[Site, Tensor]:
        """Site → Σ over positions of activation × gradient, (N, width of the layer)."""
        gradients = torch.autograd.grad(f, [tap.edge for tap in found], v, retain_graph=not last, allow_unused=True)
        terms: dict[Site, Tensor] = {}
        for tap, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                term = tap.term(gradient, len(f), absolute=absolute)
                terms[tap.site] = terms[tap.site] + term if tap.site in terms else term
        return terms

    def _squares(self, terms: dict[Site, Tensor], n: int) -> Tensor:
        """(N, channels)."""
        columns = []
        for group, chosen in zip(self._groups, self._chosen, strict=True):
            joint = torch.zeros(n, group.width, dtype=torch.float64, device=next(iter(terms.values())).device if terms else "cpu")
            squares = torch.zeros_like(joint)
            for member in chosen:
                term = terms.get((member.module, member.role))
                if term is None:
                    continue
                part = torch.zeros_like(joint).index_add_(1, member.channel.to(term.device), term[:, member.index.to(term.device)])
                joint += part
                squares += part.square()
            columns.append(joint.square() if self._criterion.squares == "joint" else squares)
        return torch.cat(columns, 1)

    def _verify(self, piece: Piece) -> None:
        """Refuse a model in which a layer's rows do not belong to the examples in order, by scoring two of them alone."""
        few = ends(piece.batch, piece.n)
        size = batch_size(few)
        with self._tapped(few) as (f, found):
            v = torch.randn(f.shape, generator=torch.Generator().manual_seed(0)).to(f)
            together = self._terms(f, found, v, last=True)
        for i in range(size):
            with self._tapped(narrow(few, i, i + 1, size)) as (f, found):
                alone = self._terms(f, found, v[i : i + 1], last=False)
                scales = self._terms(f, found, v[i : i + 1], last=True, absolute=True)
            for site, term in alone.items():
                apart = together[site][i : i + 1].sub(term).abs().max() if site in together else term.abs().max()
                if not apart <= tolerance(f.dtype) * max(10 * term.abs().max(), scales[site].max() / 10):
                    raise TPVError(
                        f"the rows of {site[0]} cannot be told apart by example (positions are reordered or shared across the batch): "
                        "score with chunk_size=1."
                    )
        self._verified = size > 1
