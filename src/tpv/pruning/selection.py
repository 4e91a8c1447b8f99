"""Which channels go, so that a budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tpv._errors import TPVError
from tpv.pruning.allocation import allocate
from tpv.pruning.budget import Budget
from tpv.pruning.curves import Curve
from tpv.pruning.elimination import Elimination, Terms
from tpv.pruning.groups import ChannelGroup

Chosen = dict[str, list[int]]


def by_ranking(
    groups: Sequence[ChannelGroup],
    values: Mapping[str, Tensor],
    removed: Mapping[str, Sequence[int]],
    costs: Budget,
    limit: float,
    terms: Terms | None = None,
) -> Chosen:
    """The channels of lowest value over all groups, one after the other until the cost is within the limit.

    Args:
        groups: of the unpruned model.
        values: group → value of each of its channels that is still there.
        removed: those that are not.
        terms: of the channels that are still there; a channel's value then is what it adds to those that have gone before.

    Raises:
        TPVError: if the limit is not met with one channel left in every group; for NaN.
    """
    gone = {group.name: list(removed.get(group.name, ())) for group in groups}
    left = [(i, c) for i, group in enumerate(groups) for c in range(group.width) if c not in set(gone[group.name])]
    ranking = Elimination(torch.cat([values[group.name] for group in groups]), terms)
    widths = [group.width - len(gone[group.name]) for group in groups]
    owners = torch.tensor([i for i, _ in left])
    ranking.keep(torch.tensor([widths[i] == 1 for i, _ in left]))
    while costs.of(widths) > limit and (found := ranking.lowest()) is not None:
        i, channel = left[found]
        gone[groups[i].name].append(channel)
        widths[i] -= 1
        ranking.remove(found)
        if widths[i] == 1:
            ranking.keep(owners == i)
    _check(costs, widths, limit)
    return gone


def uniformly(
    groups: Sequence[ChannelGroup], values: Mapping[str, Tensor], removed: Mapping[str, Sequence[int]], costs: Budget, limit: float
) -> Chosen:
    """The channels of lowest value within each group, the same share of every group.

    Args, Raises:
        as :func:`by_ranking`.
    """
    shares = torch.linspace(1, 0, 1001).tolist()
    for share in shares:
        widths = [min(g.width - len(removed.get(g.name, ())), max(1, round(share * g.width))) for g in groups]
        if costs.of(widths) <= limit:
            break
    _check(costs, widths, limit)
    return to_widths(groups, values, removed, widths)


def by_curves(
    groups: Sequence[ChannelGroup], values: Mapping[str, Tensor], curves: Mapping[str, Curve], costs: Budget, limit: float
) -> Chosen:
    """The widths of least summed damage, with the channels of highest value in each group.

    Args, Raises:
        as :func:`by_ranking`.
    """
    return to_widths(groups, values, {}, allocate([curves[group.name] for group in groups], costs.costs, limit).widths)


def to_widths(
    groups: Sequence[ChannelGroup], values: Mapping[str, Tensor], removed: Mapping[str, Sequence[int]], widths: Sequence[int]
) -> Chosen:
    """The channels of highest value stay, so many in each group."""
    chosen: Chosen = {}
    for group, width in zip(groups, widths, strict=True):
        gone = list(removed.get(group.name, ()))
        left = torch.tensor([c for c in range(group.width) if c not in set(gone)])
        order = values[group.name].argsort(stable=True)
        chosen[group.name] = gone + left[order[: len(left) - width]].tolist()
    return chosen


def _check(costs: Budget, widths: Sequence[int], limit: float) -> None:
    if costs.of(widths) > limit:
        raise TPVError(
            f"the target cannot be met: with one channel left in every group there are still {costs.of(widths):,.0f} {costs.unit} "
            f"of {costs.total:,.0f}, more than {limit:,.0f}; keep more, or ignore fewer layers."
        )
