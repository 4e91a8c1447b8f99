"""Channel scores: per example, exact, from backward passes without weight gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.estimation.loop import Progress, Seed, accumulate
from tpv.estimators.base import TOTAL, Chunk, Contribution, EstimatorRun
from tpv.jacobian.formulas.base import tolerance
from tpv.model.batches import batch_size, batches, ends, narrow
from tpv.model.linearization import Forward, Linearization, masked
from tpv.model.outputs import same
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.scores.channel_scores import ChannelScores, Sums
from tpv.pruning.scores.cotangents import Cotangents, Frozen, ready
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
    progress: Progress | None = None,
    chunk_size: int | None = None,
) -> ChannelScores:
    r"""The score of every channel: how far the predictions move without it, to first order and per example.

    .. math:: \mathrm{score}(g) = E_x \frac1R \sum_r (v_r^\top J_g(x) w_g)^2

    Nothing but activations and their gradients is needed: where a layer reads channel c, :math:`v^\top J_g
    w_g = \sum a_c \, \partial(v^\top f)/\partial a_c` over positions, with the gradient through this layer
    alone; where it writes c, the same with its output. The model is left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode.
        data: unlabelled inputs (labelled for :class:`JC`), as in :func:`tpv.estimate`.
        groups: what can be removed; :func:`tpv.integrations.torch_pruning.channel_groups` finds it.
        criterion: by default :class:`TPVImportance`.
        frozen: from :func:`freeze`, for a model that is no longer the unpruned one; by default this model is.
        forward, generator, progress, chunk_size: as in :func:`tpv.estimate`.

    Returns:
        Scores with standard errors over examples, and how well two halves of the examples agree on the
        ranking.

    Raises:
        TPVError: for input that cannot give a meaningful number; for NaN; for a layer whose rows cannot be
            told apart by example.

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
        >>> scores["0"].value.shape, scores.metadata["criterion"]
        (torch.Size([4]), "TPVImportance(probes=1, members='consumers', squares='joint', output='logits',
        interactions=False)")
    """
    started = time.perf_counter()
    criterion = criterion or TPVImportance()
    if not groups:
        raise TPVError("there is no group of channels to score.")
    with ready(model, criterion, forward) as lin:
        procedure = _Scoring(lin, criterion, groups, Cotangents(criterion, generator, frozen))
        run = accumulate(lin, batches(data), lambda _: procedure, chunk_size, progress)
    procedure.check_complete()
    if not procedure.sums.count:
        raise TPVError(f"no example counts for {criterion!r}: all are below the confidence or ignored.")
    metadata = run.metadata(generator, started, criterion=repr(criterion), examples=procedure.sums.count)
    names, widths = [group.name for group in groups], [group.width for group in groups]
    return ChannelScores.from_sums(names, widths, procedure.sums, metadata, procedure.terms())


class _Scoring(EstimatorRun):
    """Terms vᵀJ_g w_g of each example and channel, squared and summed."""

    def __init__(
        self, lin: Linearization, criterion: Criterion, groups: Sequence[ChannelGroup], cotangents: Cotangents
    ) -> None:
        self._lin, self._criterion, self._groups, self._cotangents = lin, criterion, groups, cotangents
        self.names, self.method = [TOTAL], repr(criterion)
        self._chosen = [group.chosen(criterion.members) for group in groups]
        self._sites: set[Site] = {(m.module, m.role) for chosen in self._chosen for m in chosen}
        self._copied: set[Site] = set()
        self._reached: set[Site] = set()
        self._verified = False
        self.sums = Sums.zero(sum(group.width for group in groups))
        self._kept: list[Tensor] = []

    def contribution(self, chunk: Chunk) -> Contribution:
        if not self._verified:
            self._verify(chunk)
        scores, counted, terms = self._scores(chunk)
        self.sums.add(scores, counted)
        self._kept += terms
        return Contribution(scores.sum(1, keepdim=True))

    def check_complete(self) -> None:
        """Refuse scores that are zero because a layer was never run."""
        if missing := sorted(name for name, _ in self._sites - self._reached):
            raise TPVError(
                f"{missing[0]} was not called as a module on this data, so that its weights cannot be "
                "scored: "
                "leave its group out, or give data that reaches it."
            )

    def terms(self) -> Terms | None:
        """Of all examples and probes, for criteria with interactions."""
        if not self._criterion.interactions:
            return None
        kept = torch.cat(self._kept)
        return Terms(kept[:, 1:], kept[:, 0])

    def _scores(self, chunk: Chunk) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(N, channels), which examples count, and with interactions for each probe what has moved and the
        terms of these.
        """
        kept = []
        with self._tapped(chunk.batch) as (f, z, found):
            v, counted = self._cotangents(f.detach(), chunk)
            moved = self._cotangents.moved(self._lin, f.detach(), chunk)
            total = torch.zeros(
                len(f), sum(group.width for group in self._groups), dtype=torch.float64, device=f.device
            )
            for r in range(v.shape[1]):
                joint, squares = self._by_channel(
                    self._terms(z, found, v[:, r], last=r == v.shape[1] - 1), len(f)
                )
                total += joint.square() if self._criterion.squares == "joint" else squares
                if self._criterion.interactions:
                    already = -(v[:, r].double() * moved).reshape(len(f), -1).sum(1, keepdim=True)
                    kept.append(torch.cat([already, joint], 1)[counted].float().cpu())
        return (total / v.shape[1] * counted.unsqueeze(1)).cpu(), counted.cpu(), kept

    @contextmanager
    def _tapped(self, batch: Any) -> Iterator[tuple[Tensor, Tensor, list[Tap]]]:
        """Outputs f, predictions z with a graph, and the activations that members read or write.

        Where a single example is padded to two, the second gets no gradient, so that sums over all rows are
        the first's.
        """
        plain = self._lin.reading(same)
        with torch.enable_grad(), taps(self._lin.model, self._sites, self._copied) as found:
            f = plain.differentiable(batch)
            z = masked(self._lin.output.coordinates(f, f), batch)
            stale = {tap.site for tap in found if tap.stale}
        self._reached |= {tap.site for tap in found}
        if stale:
            self._copied |= stale
            with self._tapped(batch) as again:
                yield again
        else:
            yield f, z, found

    def _terms(
        self, z: Tensor, found: list[Tap], v: Tensor, *, last: bool, absolute: bool = False
    ) -> dict[Site, Tensor]:
        """Site → Σ over positions of activation × gradient, (N, width of the layer)."""
        gradients = torch.autograd.grad(
            z, [tap.edge for tap in found], v, retain_graph=not last, allow_unused=True
        )
        terms: dict[Site, Tensor] = {}
        for tap, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                term = tap.term(gradient, len(z), absolute=absolute)
                terms[tap.site] = terms[tap.site] + term if tap.site in terms else term
        return terms

    def _by_channel(self, terms: dict[Site, Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Terms summed over the members of each channel, and the sums of their squares, (N, channels)
        each.
        """
        device = next(iter(terms.values())).device if terms else torch.device("cpu")
        joint, squares = [], []
        for group, chosen in zip(self._groups, self._chosen, strict=True):
            parts = [torch.zeros(n, group.width, dtype=torch.float64, device=device)]
            for member in chosen:
                term = terms.get((member.module, member.role))
                if term is not None:
                    parts.append(
                        torch.zeros_like(parts[0]).index_add_(
                            1, member.channel.to(device), term[:, member.index.to(device)]
                        )
                    )
            joint.append(torch.stack(parts).sum(0))
            squares.append(torch.stack(parts).square().sum(0))
        return torch.cat(joint, 1), torch.cat(squares, 1)

    def _verify(self, chunk: Chunk) -> None:
        """Refuse a model in which a layer's rows do not belong to the examples in order, by scoring two of
        them alone.
        """
        few = ends(chunk.batch, chunk.n)
        size = batch_size(few)
        with self._tapped(few) as (_, z, found):
            v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
            together = self._terms(z, found, v, last=True)
        for i in range(size):
            with self._tapped(narrow(few, i, i + 1, size)) as (_, z, found):
                alone = self._terms(z, found, v[i : i + 1], last=False)
                scales = self._terms(z, found, v[i : i + 1], last=True, absolute=True)
            for site, term in alone.items():
                apart = (
                    together[site][i : i + 1].sub(term).abs().max() if site in together else term.abs().max()
                )
                if not apart <= tolerance(z.dtype) * max(10 * term.abs().max(), scales[site].max() / 10):
                    raise TPVError(
                        f"the rows of {site[0]} cannot be told apart by example (positions are reordered or "
                        "shared across the batch): "
                        "score with chunk_size=1."
                    )
        self._verified = size > 1
