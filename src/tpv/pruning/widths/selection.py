"""Which channels are removed, so that a budget is met."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tpv.allocation.knapsack import allocate
from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import Removed, remaining_channels
from tpv.pruning.scores.greedy import Elimination, Terms
from tpv.pruning.widths.budget import Budget

Curve = dict[int, float]
"""Width → E‖Δf‖²."""
Values = Mapping[str, Tensor]
"""Group → value of each of its channels that is still there."""
_BLOCK = 64


def by_ranking(
    groups: Sequence[ChannelGroup],
    values: Values,
    removed: Removed,
    costs: Budget,
    limit: float,
    terms: Terms | None = None,
) -> dict[str, list[int]]:
    """The channels of lowest value over all groups of the unpruned model, one after the other until the cost
    is within the limit.

    ``values`` are of the channels that are not yet removed, and so are ``terms``, with which a channel's
    value is what it adds to those that have gone before.
    """
    left = [(i, c) for i, group in enumerate(groups) for c in remaining_channels(group, removed)]
    owners, now = torch.tensor([i for i, _ in left]), _widths(groups, removed)
    elimination = Elimination(torch.tensor([v for group in groups for v in _finite(group, values)]), terms)
    order, current = list[int](), torch.tensor(now)

    def widths(k: int) -> list[int]:
        """Without the first k in the order."""
        fewer = Counter(left[channel][0] for channel in order[:k])
        return [width - fewer[i] for i, width in enumerate(now)]

    elimination.keep(current[owners] == 1)
    while costs.of(current.tolist()) > limit and not elimination.finished:
        for _ in range(_BLOCK):
            if (channel := elimination.lowest()) is not None:
                order.append(channel)
                elimination.remove(channel)
                current[owners[channel]] -= 1
                elimination.keep(current[owners] == 1)
    k = bisect_left(range(len(order)), True, key=lambda k: costs.of(widths(k)) <= limit)
    check_attainable(costs, widths(k), limit)
    gone = {group.name: list(removed.get(group.name, ())) for group in groups}
    for channel in order[:k]:
        i, c = left[channel]
        gone[groups[i].name].append(c)
    return gone


def uniformly(
    groups: Sequence[ChannelGroup], values: Values, removed: Removed, costs: Budget, limit: float
) -> dict[str, list[int]]:
    """The channels of lowest value within each group, the same share of every group."""
    now = _widths(groups, removed)
    for share in torch.linspace(1, 0, 1001).tolist():
        widths = [min(n, max(1, round(share * g.width))) for n, g in zip(now, groups, strict=True)]
        if costs.of(widths) <= limit:
            break
    check_attainable(costs, widths, limit)
    return _narrowed(groups, values, removed, widths)


def by_curves(
    groups: Sequence[ChannelGroup],
    values: Values,
    curves: Mapping[str, Curve],
    removed: Removed,
    costs: Budget,
    limit: float,
) -> dict[str, list[int]]:
    """The widths of least summed damage among those measured, then single channels while the limit allows."""
    most = _widths(groups, removed)
    check_attainable(costs, [1] * len(groups), limit)
    damages = [
        {w: d for w, d in curves[g.name].items() if w <= m} | {m: interpolated(curves[g.name], m)}
        for g, m in zip(groups, most, strict=True)
    ]
    widths = list(allocate(damages, costs.costs, limit).sizes)

    def gain(i: int) -> float:
        curve = curves[groups[i].name]
        return interpolated(curve, widths[i]) - interpolated(curve, widths[i] + 1)

    def wider(i: int) -> list[int]:
        return [width + (i == j) for j, width in enumerate(widths)]

    while fits := [i for i, m in enumerate(most) if widths[i] < m and costs.of(wider(i)) <= limit]:
        widths = wider(max(fits, key=gain))
    return _narrowed(groups, values, {}, widths)


def interpolated(curve: Curve, width: int) -> float:
    """A curve between its measured widths."""
    below, above = max(w for w in curve if w <= width), min(w for w in curve if w >= width)
    share = (width - below) / max(above - below, 1)
    return (1 - share) * curve[below] + share * curve[above]


def _widths(groups: Sequence[ChannelGroup], removed: Removed) -> list[int]:
    return [group.width - len(removed.get(group.name, ())) for group in groups]


def _narrowed(
    groups: Sequence[ChannelGroup], values: Values, removed: Removed, widths: Sequence[int]
) -> dict[str, list[int]]:
    """The channels of highest value stay, so many in each group."""
    gone = {}
    for group, width in zip(groups, widths, strict=True):
        left = remaining_channels(group, removed)
        order = torch.tensor(_finite(group, values), dtype=torch.float64).argsort(stable=True)
        lowest = [left[i] for i in order[: len(left) - width].tolist()]
        gone[group.name] = [*removed.get(group.name, ()), *lowest]
    return gone


def _finite(group: ChannelGroup, values: Values) -> list[float]:
    if not values[group.name].isfinite().all():
        raise TPVError(f"the scores of {group.name} are NaN or infinite.")
    return values[group.name].tolist()


def check_attainable(costs: Budget, widths: Sequence[int], limit: float) -> None:
    """Refuse widths, the least there are, that cost too much."""
    if costs.of(widths) > limit:
        raise TPVError(
            "the target cannot be met: with one channel left in every group there are still "
            f"{costs.of(widths):,.0f} {costs.unit} of {costs.total:,.0f}, more than {limit:,.0f}; keep more, "
            "or ignore fewer layers."
        )
