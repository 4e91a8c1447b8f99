"""Channel scores: per example, exact, from backward passes without weight gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.estimation.loop import Seed, accumulate
from tpv.estimators.base import TOTAL, Chunk, Contribution, EstimatorRun
from tpv.jacobian.formulas.base import tolerance
from tpv.model.batches import batch_size, batches, ends, narrow
from tpv.model.linearization import Forward, Linearization, masked
from tpv.model.outputs import same
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.scores.channel_scores import ChannelScores, ScoreSums
from tpv.pruning.scores.cotangents import Cotangents, Frozen, linearized
from tpv.pruning.scores.criteria import Criterion, TPVImportance
from tpv.pruning.scores.greedy import Terms
from tpv.pruning.scores.taps import Site, Tap, taps


def score(
    model: nn.Module,
    data: object,
    groups: Sequence[ChannelGroup],
    criterion: Criterion | None = None,
    *,
    frozen: Frozen | None = None,
    forward: Forward | None = None,
    generator: Seed = 0,
    chunk_size: int | None = None,
) -> ChannelScores:
    r"""The score of every channel: the first-order output change without it, per example.

    .. math:: \mathrm{score}(g) = E_x \frac1R \sum_r (v_r^\top J_g(x) w_g)^2

    Nothing but activations and their gradients is needed: where a layer takes channel c as input,
    :math:`v^\top J_g w_g = \sum a_c \, \partial(v^\top f)/\partial a_c` over positions, with the
    gradient through this layer alone; where it gives c out, the same with its output. The model is
    left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode.
        data: unlabelled inputs (labelled for :class:`JC`), as in :func:`tpv.estimate`.
        groups: what can be removed; :func:`tpv.integrations.torch_pruning.channel_groups` finds it.
        criterion: by default :class:`TPVImportance`.
        frozen: from :func:`freeze`, for a model that is no longer the unpruned one; by default this model is.
        forward, generator, chunk_size: as in :func:`tpv.estimate`.

    Returns:
        Scores with standard errors over examples, and how well two halves of the examples agree on the
        ranking.

    Raises:
        TPVError: for input that cannot give a meaningful number; for NaN; for a layer whose rows cannot be
            attributed to single examples.

    Cost per example: one forward pass and R backward passes to activations, about 1 forward+backward pass for
    R = 1.

    Source: D. Arpit, arXiv 2512.11089 (JBR, JC).

    Example:
        >>> import torch, tpv
        >>> from tpv.pruning import ChannelGroup, Member, score
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
        >>> c = torch.arange(4)
        >>> hidden = ChannelGroup("0", 4, (Member("0", "producer", c, c), Member("2", "consumer", c, c)))
        >>> scores = score(model, torch.randn(100, 8), [hidden])
        >>> scores["0"].value.shape
        torch.Size([4])
    """
    started = time.perf_counter()
    criterion = criterion or TPVImportance()
    if not groups:
        raise TPVError("there is no group of channels to score.")
    with linearized(model, criterion, forward) as lin:
        scoring = _Scoring(lin, criterion, groups, Cotangents(criterion, generator, frozen))
        run = accumulate(lin, batches(data), lambda _: scoring, chunk_size, False)
    scoring.check_complete()
    if not scoring.sums.count:
        raise TPVError(f"no example counts for {criterion!r}: all are below the confidence or ignored.")
    metadata = run.metadata(generator, started, criterion=repr(criterion), examples=scoring.sums.count)
    return scoring.sums.result(groups, metadata, scoring.terms())


class _Scoring(EstimatorRun):
    """Terms vᵀJ_g w_g of each example and channel, squared and summed."""

    def __init__(
        self, lin: Linearization, criterion: Criterion, groups: Sequence[ChannelGroup], cotangents: Cotangents
    ) -> None:
        self._lin, self._criterion, self._groups, self._cotangents = lin, criterion, groups, cotangents
        self.names, self.method = [TOTAL], repr(criterion)
        self._members = [group.scored_members(criterion.parameters) for group in groups]
        self._sites: set[Site] = {(m.module, m.role) for members in self._members for m in members}
        self._modified: set[Site] = set()
        self._called: set[Site] = set()
        self._verified = False
        self.sums = ScoreSums.zero(sum(group.width for group in groups))
        self._terms_by_chunk: list[Tensor] = []

    def contribution(self, chunk: Chunk) -> Contribution:
        if not self._verified:
            self._verify(chunk)
        scores, counted, terms = self._scores(chunk)
        self.sums.update(scores, counted)
        self._terms_by_chunk += terms
        return Contribution(scores.sum(1, keepdim=True))

    def check_complete(self) -> None:
        """Refuse scores that are zero because a layer was never called."""
        if missing := sorted(name for name, _ in self._sites - self._called):
            raise TPVError(
                f"{missing[0]} was not called as a module on this data, so its weights cannot be scored: "
                "leave its group out, or give data that reaches it."
            )

    def terms(self) -> Terms | None:
        """Of all examples and probes, for criteria with interactions."""
        if not self._criterion.interactions:
            return None
        rows = torch.cat(self._terms_by_chunk)
        return Terms(rows[:, 1:], rows[:, 0])

    def _scores(self, chunk: Chunk) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(N, channels), which examples count, and each probe's rows for :class:`Terms`, if asked for."""
        rows = []
        with self._tapped(chunk.batch) as (f, z, tapped):
            v, counted = self._cotangents(f.detach(), chunk)
            change = self._cotangents.output_change(self._lin, f.detach(), chunk)
            total = torch.zeros((), dtype=torch.float64, device=f.device)
            for r in range(v.shape[1]):
                terms = self._by_channel(self._terms(z, tapped, v[:, r], last=r == v.shape[1] - 1), f)
                total = total + terms.square()
                if self._criterion.interactions:
                    before = -(v[:, r].double() * change).reshape(len(f), -1).sum(1, keepdim=True)
                    rows.append(torch.cat([before, terms], 1)[counted].float().cpu())
        return (total / v.shape[1] * counted.unsqueeze(1)).cpu(), counted.cpu(), rows

    @contextmanager
    def _tapped(self, batch: Any) -> Iterator[tuple[Tensor, Tensor, list[Tap]]]:
        """Outputs f, predictions z with a graph, and the activations that members take in or give out.

        Where a single example is padded to two, the second gets no gradient, so that sums over all rows are
        the first's.
        """
        outputs = self._lin.reading(same)
        with torch.enable_grad(), taps(self._lin.model, self._sites, self._modified) as tapped:
            f = outputs.differentiable(batch)
            z = masked(self._lin.output.coordinates(f, f), batch)
            modified = {tap.site for tap in tapped if tap.modified}
        self._called |= {tap.site for tap in tapped}
        if modified:
            self._modified |= modified
            with self._tapped(batch) as again:
                yield again
        else:
            yield f, z, tapped

    def _terms(
        self, z: Tensor, tapped: list[Tap], v: Tensor, *, last: bool, absolute: bool = False
    ) -> dict[Site, Tensor]:
        """Site → Σ over positions of activation × gradient, (N, width of the layer)."""
        edges = [tap.edge for tap in tapped]
        gradients = torch.autograd.grad(z, edges, v, retain_graph=not last, allow_unused=True)
        terms: dict[Site, Tensor] = {}
        for tap, gradient in zip(tapped, gradients, strict=True):
            if gradient is not None:
                term = tap.term(gradient, len(z), absolute=absolute)
                terms[tap.site] = terms[tap.site] + term if tap.site in terms else term
        return terms

    def _by_channel(self, terms: dict[Site, Tensor], like: Tensor) -> Tensor:
        """Terms summed over the members of each channel, (N, channels)."""
        columns = []
        for group, members in zip(self._groups, self._members, strict=True):
            total = torch.zeros(len(like), group.width, dtype=torch.float64, device=like.device)
            for member in members:
                term = terms.get((member.module, member.role))
                if term is not None:
                    index = member.index.to(like.device)
                    total.index_add_(1, member.channel.to(like.device), term[:, index])
            columns.append(total)
        return torch.cat(columns, 1)

    def _verify(self, chunk: Chunk) -> None:
        """Refuse a model in which a layer's rows are not the examples in order: two are scored alone."""
        pair = ends(chunk.batch, chunk.n)
        size = batch_size(pair)
        with self._tapped(pair) as (_, z, tapped):
            v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
            together = self._terms(z, tapped, v, last=True)
        for i in range(size):
            with self._tapped(narrow(pair, i, i + 1, size)) as (_, z, tapped):
                alone = self._terms(z, tapped, v[i : i + 1], last=False)
                scales = self._terms(z, tapped, v[i : i + 1], last=True, absolute=True)
            for site, term in alone.items():
                gap = (term - together[site][i : i + 1] if site in together else term).abs().max()
                if not gap <= tolerance(z.dtype) * max(10 * term.abs().max(), scales[site].max() / 10):
                    raise TPVError(
                        f"the rows of {site[0]} cannot be attributed to examples (positions are reordered or "
                        "shared across the batch): score with chunk_size=1."
                    )
        self._verified = size > 1
