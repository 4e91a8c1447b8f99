"""The order in which groups are decided, so that few of them are open at any time (bucket elimination).

Costs tie groups together. Deciding a group leaves open the groups that it shares a cost with, together with
those left open before: the frontier. A chain of layers has one group in it, stages of residual blocks one or
two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tpv.common.errors import TPVError

_MAX_COMBINATIONS = 1_000_000

Terms = Mapping[tuple[int, ...], Mapping[tuple[int, ...], int]]
"""Costs by the groups that they depend on: {groups: {option of each: cost}}."""


@dataclass(frozen=True)
class Step:
    """One group is decided, for each choice of the groups in the frontier after it: a row.

    Args:
        group: the decided group.
        sources: (rows, options): the row of the step before that a row and an option of the group continue.
        extras: (rows, options): how much more that costs than the cheapest path to the row.
    """

    group: int
    sources: list[list[int]]
    extras: list[list[int]]


def plan(options: Sequence[int], terms: Terms) -> tuple[list[Step], int]:
    """The steps that decide every group once, and the least total cost; extras along any path sum to its cost
    above that.

    Args:
        options: how many sizes each group can have.
        terms: the costs.

    Raises:
        TPVError: if the steps would go through more than a million combinations.
    """
    order = _order(options, list(terms))
    _refuse_entangled(options, order)
    steps, before = list[Step](), tuple[int, ...]()
    cheapest = [sum(terms.get((), {}).values())]
    for group, frontier in order:
        step, cheapest = _step(group, before, frontier, options, terms, cheapest)
        steps.append(step)
        before = frontier
    return steps, cheapest[0]


def _refuse_entangled(options: Sequence[int], order: list[tuple[int, tuple[int, ...]]]) -> None:
    sizes = [options[group] * math.prod(options[g] for g in frontier) for group, frontier in order]
    if sum(sizes) > _MAX_COMBINATIONS:
        group, frontier = order[sizes.index(max(sizes))]
        raise TPVError(
            f"the groups {sorted((group, *frontier))} share costs in such a way that {max(sizes):,} "
            "combinations of their sizes "
            f"must be compared, and {_MAX_COMBINATIONS:,} in all are allowed: give these groups fewer sizes."
        )


def _order(options: Sequence[int], scopes: Sequence[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Each group with the frontier after it: greedily the next smallest step, from the start that is best in
    all.
    """
    neighbours = [
        {g for scope in scopes if group in scope for g in scope} - {group} for group in range(len(options))
    ]
    best: list[tuple[int, tuple[int, ...]]] = []
    least = math.inf
    for start in range(len(options)):
        order, total = _greedy(start, options, neighbours, least)
        if total < least:
            best, least = order, total
    return best


def _greedy(
    start: int, options: Sequence[int], neighbours: list[set[int]], stop: float
) -> tuple[list[tuple[int, tuple[int, ...]]], int]:
    order: list[tuple[int, tuple[int, ...]]] = []
    left, frontier, total = set(range(len(options))), set[int](), 0

    def size(group: int) -> tuple[int, int, int]:
        """Combinations during a step, rows after it, and the group to break ties."""
        after = math.prod(options[g] for g in (frontier | neighbours[group]) & left if g != group)
        return after * options[group], after, group

    while left and total < stop:
        near = frontier.union(*(neighbours[g] for g in frontier)) & left
        group = min(near or left, key=size) if order else start
        total += size(group)[0]
        left.remove(group)
        frontier = (frontier | neighbours[group]) & left
        order.append((group, tuple(sorted(frontier))))
    return order, total


def _step(
    group: int,
    before: tuple[int, ...],
    frontier: tuple[int, ...],
    options: Sequence[int],
    terms: Terms,
    cheapest: list[int],
) -> tuple[Step, list[int]]:
    """One step, and the cheapest cost of each of its rows given that of the rows before."""
    decided = {*before, *frontier, group}
    mine = [(scope, table) for scope, table in terms.items() if group in scope and decided.issuperset(scope)]
    strides = {g: math.prod(options[later] for later in before[i + 1 :]) for i, g in enumerate(before)}
    step, lowest = Step(group, [], []), list[int]()
    for row in product(*(range(options[g]) for g in frontier)):
        choice = dict(zip(frontier, row, strict=True))
        sources, costs = [], []
        for option in range(options[group]):
            choice[group] = option
            source = sum(choice[g] * stride for g, stride in strides.items())
            sources.append(source)
            costs.append(
                cheapest[source] + sum(table[tuple(choice[g] for g in scope)] for scope, table in mine)
            )
        lowest.append(min(costs))
        step.sources.append(sources)
        step.extras.append([cost - lowest[-1] for cost in costs])
    return step, lowest
