r"""The sizes of least damage that a budget allows.

.. math:: \min_{n} \sum_g D_g(n_g) \quad\text{subject to}\quad \sum_t C_t(n) \le B

over one size n_g for each group g, when every cost C_t depends on few groups. Costs make this a knapsack
problem on the graph of groups that share a cost; dynamic programming over the cost, group by group, solves it
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from tpv.allocation.order import Step, plan
from tpv.common.errors import TPVError
from tpv.common.options import require_int

_TABLE_BYTES = 600_000_000


@dataclass(frozen=True)
class Cost:
    r"""One term of a cost: a product, :math:`a \prod_{g} n_g`, or a table of measured values.

    A layer whose cost is in proportion to the sizes of its inputs, group 0, and of its outputs, group 1, is
    ``Cost((0, 1), per_pair)``; one from group 1 to itself ``Cost((1, 1), per_pair)``; a fixed cost
    ``Cost((), amount)``. A layer of the concatenation of two groups is two terms.

    Args:
        groups: the groups that the cost depends on; a group listed twice counts as n².
        amount: the factor a, at least 0; or {sizes of the groups: cost}, such as latencies measured for each
            pair of sizes. The unit is that of the budget: operations, parameters, bytes, milliseconds.

    Raises:
        TPVError: for groups that are not ints of at least 0; for an amount that is negative or not finite.

    Example:
        >>> Cost((0, 1), 9 * 64).of([16, 32])
        Fraction(294912, 1)
        >>> Cost((1,), {(8,): 0.5, (32,): 1.25}).of([16, 32])
        Fraction(5, 4)
    """

    groups: tuple[int, ...]
    amount: float | Mapping[tuple[int, ...], float]

    def __post_init__(self) -> None:
        for group in self.groups:
            require_int("Cost", "groups", group, 0)
        for value in self.amount.values() if isinstance(self.amount, Mapping) else [self.amount]:
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise TPVError(
                    f"Cost(groups={self.groups!r}) of {value!r}: a cost must be a finite number of at least "
                    "0."
                )

    def of(self, sizes: Sequence[int]) -> Fraction:
        """The cost for these sizes of all groups, as an exact fraction: sums of costs are never rounded past
        a budget.

        Raises:
            TPVError: if the table lacks these sizes.
        """
        own = tuple(sizes[group] for group in self.groups)
        if not isinstance(self.amount, Mapping):
            return Fraction(self.amount) * math.prod(own)
        if own not in self.amount:
            raise TPVError(
                f"the table of costs of the groups {self.groups} has no entry for the sizes {own}: add it."
            )
        return Fraction(self.amount[own])


@dataclass(frozen=True)
class Allocation:
    """A size for every group.

    Args:
        sizes: of each group.
        damage: the sum of the groups' damages, in their unit.
        cost: of these sizes, in the unit of the budget, which it never exceeds.
        slack: what counting costs in whole steps can have wasted: no sizes that cost ``slack`` less than the
            budget do less damage. 0 where the sizes are exactly the best.
    """

    sizes: tuple[int, ...]
    damage: float
    cost: float
    slack: float = 0.0


def allocate(
    damages: Sequence[Mapping[int, float]], costs: Sequence[Cost], budget: float, *, resolution: int = 20_000
) -> Allocation:
    """The sizes of least total damage whose total cost is within the budget.

    The groups are decided one by one; a table holds, for each choice of the frontier (the undecided groups
    that share costs with decided ones) and each extra cost above the least that gets there, the least
    damage so far. Extra costs are counted in their greatest common divisor where ``resolution`` steps of it
    span the budget above the least attainable cost, and the answer is then exact. Otherwise they are rounded
    up to whole steps of that span over ``resolution``: the budget still holds exactly, and at most one step
    for each group is wasted (``slack``). Among equal damages the one of least counted cost is taken.

    Time and memory: with F the most combinations of sizes in a frontier, each group takes F × its sizes ×
    resolution additions and F × resolution × 8 bytes. Where the tables would exceed 600 MB, there are fewer
    and larger steps.

    Args:
        damages: of each group, {size: damage}; no other sizes are considered.
        costs: the terms of the cost.
        budget: the most that the costs may add up to; infinity allows everything.
        resolution: the most steps that costs are counted in.

    Raises:
        TPVError: if nothing is within the budget, naming the least attainable cost; for a group without
            sizes, a size that is not an int of at least 0 or a damage that is not finite; for a cost of
            unknown groups or without an entry for some sizes; for costs that tie so many groups
            together that over a million combinations would be compared.

    Source:
        Bertelè and Brioschi, Nonserial Dynamic Programming (1972); Dechter, Bucket elimination (Artificial
        Intelligence 1999).

    Example:
        >>> damages = [{4: 3.0, 8: 0.0}, {4: 1.0, 8: 0.0}, {4: 0.5, 8: 0.0}]
        >>> chain = [Cost((0,), 27), Cost((0, 1), 9), Cost((1, 2), 9)]
        >>> allocate(damages, chain, budget=1000)
        Allocation(sizes=(8, 4, 8), damage=1.0, cost=792.0, slack=0.0)
    """
    _check(damages, costs, budget, resolution)
    sizes = [list(damage) for damage in damages]
    free = [min(damage, key=damage.__getitem__) for damage in damages]
    if sum(cost.of(free) for cost in costs) <= budget:
        return _allocation(free, damages, costs, Fraction(0))
    terms, scale = _terms(sizes, costs)
    steps, least = plan([len(group) for group in sizes], terms)
    if least > Fraction(budget) * scale:
        raise TPVError(
            f"budget={budget:g}: no sizes cost so little; the least attainable cost is "
            f"{float(Fraction(least, scale)):.17g}."
        )
    room = math.floor(Fraction(budget) * scale) - least
    bins, unit = _counting(steps, room, resolution)
    tables = _tables(steps, damages, bins, unit)
    best = [sizes[group][option] for group, option in enumerate(_trace(steps, tables, damages, unit))]
    rounded = sum(any(extra % unit for row in step.extras for extra in row) for step in steps)
    return _allocation(best, damages, costs, rounded * unit / scale)


def _check(
    damages: Sequence[Mapping[int, float]], costs: Sequence[Cost], budget: float, resolution: int
) -> None:
    require_int("allocate", "resolution", resolution, 1)
    if not isinstance(budget, int | float) or math.isnan(budget):
        raise TPVError(f"allocate(budget={budget!r}): budget must be a number, in the unit of the costs.")
    for group, damage in enumerate(damages):
        if not damage:
            raise TPVError(f"group {group} has no sizes: give the damage at one size or more.")
        for size, value in damage.items():
            require_int(f"damages[{group}]", "size", size, 0)
            if not math.isfinite(value):
                raise TPVError(
                    f"damages[{group}][{size}] is {value}: leave out the sizes without a finite damage."
                )
    for cost in costs:
        if unknown := [group for group in cost.groups if group >= len(damages)]:
            raise TPVError(
                f"a cost depends on group {unknown[0]}, but there are damages for {len(damages)} groups: "
                "count groups from 0."
            )


def _allocation(
    sizes: list[int], damages: Sequence[Mapping[int, float]], costs: Sequence[Cost], slack: Fraction
) -> Allocation:
    damage = math.fsum(damage[size] for damage, size in zip(damages, sizes, strict=True))
    return Allocation(tuple(sizes), damage, float(sum(cost.of(sizes) for cost in costs)), float(slack))


def _terms(
    sizes: list[list[int]], costs: Sequence[Cost]
) -> tuple[dict[tuple[int, ...], dict[tuple[int, ...], int]], int]:
    """The costs as ints in the unit 1/scale, by the groups they depend on and the options of these."""
    terms: dict[tuple[int, ...], dict[tuple[int, ...], Fraction]] = {}
    some = [group[0] for group in sizes]
    for cost in costs:
        scope = tuple(sorted(set(cost.groups)))
        table = terms.setdefault(scope, {})
        for options in product(*(range(len(sizes[g])) for g in scope)):
            here = some.copy()
            for g, option in zip(scope, options, strict=True):
                here[g] = sizes[g][option]
            table[options] = table.get(options, Fraction(0)) + cost.of(here)
    scale = math.lcm(*(value.denominator for table in terms.values() for value in table.values()))
    return {
        scope: {options: int(value * scale) for options, value in table.items()}
        for scope, table in terms.items()
    }, scale


def _counting(steps: list[Step], room: int, resolution: int) -> tuple[int, Fraction]:
    """How many steps of which cost span the room: of the greatest common divisor of the extras, or of a share
    of the room.
    """
    most = max(1, min(resolution, _TABLE_BYTES // (8 * sum(len(step.extras) for step in steps))))
    common = math.gcd(*(extra for step in steps for row in step.extras for extra in row))
    if room // common <= most:
        return room // common, Fraction(common)
    return most, Fraction(room, most)


def _tables(
    steps: list[Step], damages: Sequence[Mapping[int, float]], bins: int, unit: Fraction
) -> list[Tensor]:
    """The least damage before the first and after each step, (rows, bins + 1): for a counted extra cost of at
    most 0, 1, ..., bins.
    """
    tables = [torch.zeros(1, bins + 1, dtype=torch.float64)]
    for step in steps:
        before, after = tables[-1], torch.full((len(step.extras), bins + 1), math.inf, dtype=torch.float64)
        work = torch.empty(bins + 1, dtype=torch.float64)
        values = list(damages[step.group].values())
        for row, sources, extras in zip(after, step.sources, step.extras, strict=True):
            for source, extra, value in zip(sources, extras, values, strict=True):
                if (shift := math.ceil(extra / unit)) <= bins:
                    end = bins + 1 - shift
                    torch.add(before[source, :end], value, out=work[:end])
                    torch.minimum(row[shift:], work[:end], out=row[shift:])
        tables.append(after)
    return tables


def _trace(
    steps: list[Step], tables: list[Tensor], damages: Sequence[Mapping[int, float]], unit: Fraction
) -> list[int]:
    """The option of each group that gives the least damage."""
    row, total = 0, int((tables[-1][0] <= tables[-1][0, -1]).nonzero()[0])
    options = [0] * len(steps)
    for step, before in zip(reversed(steps), reversed(tables[:-1]), strict=True):
        sources = []
        for option, value in enumerate(damages[step.group].values()):
            source, rest = step.sources[row][option], total - math.ceil(step.extras[row][option] / unit)
            if rest >= 0:
                sources.append((before[source, rest].item() + value, option, source, rest))
        _, options[step.group], row, total = min(sources)
    return options
