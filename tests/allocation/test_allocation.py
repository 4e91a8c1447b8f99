"""Widths of least damage within a budget, against every combination."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv.allocation import knapsack
from tpv.allocation.knapsack import Allocation, Cost, allocate
from tpv.common.errors import TPVError

FEW = settings(max_examples=100, deadline=None)


def total(costs, widths):
    return sum(cost.of(widths) for cost in costs)


def least_damage(damages, costs, budget):
    """By trying every combination of widths; None if nothing is within the budget."""
    fitting = [widths for widths in product(*damages) if total(costs, widths) <= budget]
    return min(
        (math.fsum(d[w] for d, w in zip(damages, widths, strict=True)) for widths in fitting), default=None
    )


@st.composite
def problems(draw, whole=True):
    """Damages of up to 5 groups, and terms of every kind between up to 3 of them."""
    groups = draw(st.integers(1, 5))
    number = st.integers(0, 40) if whole else st.floats(0, 40)
    width, damage = st.integers(0, 9), st.floats(-1, 5, width=16)
    damages = draw(
        st.lists(st.dictionaries(width, damage, min_size=1, max_size=4), min_size=groups, max_size=groups)
    )
    costs = []
    for scope in draw(st.lists(st.lists(st.integers(0, groups - 1), max_size=3), max_size=7)):
        if draw(st.booleans()):
            costs.append(Cost(tuple(scope), draw(number)))
        else:
            combinations = list(product(*(damages[g] for g in set(scope))))
            table = draw(st.lists(number, min_size=len(combinations), max_size=len(combinations)))
            costs.append(Cost(tuple(set(scope)), dict(zip(combinations, table, strict=True))))
    attainable = sorted({total(costs, widths) for widths in product(*damages)})
    return damages, costs, attainable


@FEW
@given(problems(), st.integers(0, 10**6), st.sampled_from([0, 0, -1, 1]))
def test_whole_costs_give_exactly_the_least_damage(problem, pick, off) -> None:
    damages, costs, attainable = problem
    budget = int(attainable[pick % len(attainable)]) + off
    expected = least_damage(damages, costs, budget)
    if expected is None:
        with pytest.raises(TPVError, match=f"least attainable cost is {attainable[0]}"):
            allocate(damages, costs, budget, resolution=10**6)
        return
    found = allocate(damages, costs, budget, resolution=10**6)
    assert found.damage == pytest.approx(expected, abs=1e-12)
    assert found.damage == math.fsum(d[w] for d, w in zip(damages, found.sizes, strict=True))
    assert found.cost == total(costs, found.sizes) <= budget
    assert found.slack == 0


@FEW
@given(problems(whole=False), st.integers(0, 10**6), st.sampled_from([0, 1e-9, 3.3]), st.integers(1, 200))
def test_coarse_costs_hold_the_budget_and_waste_no_more_than_they_say(problem, pick, off, resolution) -> None:
    damages, costs, attainable = problem
    budget = float(attainable[pick % len(attainable)]) + off
    if budget < attainable[0]:
        budget = math.nextafter(budget, math.inf)
    found = allocate(damages, costs, budget, resolution=resolution)
    assert total(costs, found.sizes) <= budget
    assert found.damage >= least_damage(damages, costs, budget) - 1e-12
    assert found.slack <= float(len(damages) * (Fraction(budget) - attainable[0]) / resolution) * (1 + 1e-9)
    with_less = least_damage(damages, costs, Fraction(budget) - Fraction(found.slack) * Fraction(1 + 1e-9))
    assert with_less is None or found.damage <= with_less + 1e-12
    assert found.damage <= least_damage(damages, costs, attainable[0]) + 1e-12


def test_a_residual_network() -> None:
    """Two stages that blocks read and write, each block with a width of its own, and a join of the stages."""
    rng = random.Random(0)
    widths = [(2, 4, 6, 8)] * 2 + [(4, 8, 16)] * 2 + [(8, 32)]
    damages = [{w: rng.random() / w for w in group} for group in widths]
    blocks = [
        Cost((0, 1), 9),
        Cost((1, 0), 9),
        Cost((0, 2), 4),
        Cost((0, 3), 9),
        Cost((3, 2), 9),
        Cost((2, 4), 1),
    ]
    costs = [Cost((), 7), Cost((0,), 27), *blocks, Cost((2, 2), 3), Cost((0, 2, 4), 1)]
    for share in (0.2, 0.5, 0.9):
        budget = int(share * float(total(costs, [max(group) for group in widths])))
        found = allocate(damages, costs, budget)
        assert (found.damage, found.slack) == (
            pytest.approx(least_damage(damages, costs, budget), rel=1e-12),
            0,
        )


def test_a_budget_between_steps_of_the_common_divisor() -> None:
    damages = [{1: 2.0, 3: 1.0, 5: 0.0}, {1: 2.0, 2: 0.5}]
    costs = [Cost((0,), 1000), Cost((1,), 4000)]
    assert allocate(damages, costs, 10_999, resolution=2) == Allocation((5, 1), 2.0, 9000.0)
    assert allocate(damages, costs, 11_000, resolution=3) == Allocation((3, 2), 1.5, 11_000.0)
    assert allocate(damages, costs, 11_000, resolution=2).slack == 2 * 6000 / 2


def test_a_budget_for_everything_takes_the_least_damages() -> None:
    damages = [{4: 1.0, 8: -1.0, 16: 0.0}, {2: 0.0, 3: 0.5}]
    assert allocate(damages, [Cost((0, 1), 0.1)], math.inf).sizes == (8, 2)
    assert allocate(damages, [], 0).sizes == (8, 2)
    assert allocate([], [Cost((), 3)], 3).sizes == ()


def test_the_cheaper_of_equal_damages_is_taken() -> None:
    damages = [{1: 5.0, 3: 1.0, 2: 1.0, 20: 0.0}, {2: 1.0, 1: 1.0, 9: 0.0}]
    assert allocate(damages, [Cost((0,), 1), Cost((1,), 1)], 9).sizes == (2, 1)


def test_latencies_that_are_not_monotone() -> None:
    """A width of 8 runs faster than one of 7."""
    damages = [{7: 2.0, 8: 1.0, 9: 0.0}, {7: 2.0, 8: 1.0}]
    latency = {(a, b): 1.0 + 0.5 * (a != 8) + 0.25 * (b != 8) for a in damages[0] for b in damages[1]}
    found = allocate(damages, [Cost((0, 1), latency)], 1.2)
    assert (found.sizes, found.cost) == ((8, 8), 1.0)


def test_decimal_costs_never_pass_the_budget_by_rounding() -> None:
    damages = [{w: -w for w in range(10)} for _ in range(3)]
    costs = [Cost((g,), 0.1) for g in range(3)]
    found = allocate(damages, costs, 0.3)
    assert total(costs, found.sizes) <= 0.3  # 3 × 0.1 is above 0.3 in binary
    assert sum(found.sizes) == 2


def test_fewer_steps_where_tables_would_be_large(monkeypatch) -> None:
    damages = [{w: 1 / w for w in range(1, 7)} for _ in range(4)]
    costs = [Cost((g, g + 1), 9_973) for g in range(3)]
    assert allocate(damages, costs, 500_000).slack == 0
    monkeypatch.setattr(knapsack, "_TABLE_BYTES", 8 * 19 * 10)
    found = allocate(damages, costs, 500_000)
    assert found.cost <= 500_000
    assert 0 < found.slack <= 4 * 500_000 / 10


def test_a_deep_network_in_moments() -> None:
    """55 layers in a row, and 27 blocks on three stages: what every combination would never end."""
    widths = range(4, 52, 4)
    chain = [{w: (1 - w / 48) ** 2 for w in widths} for _ in range(55)]
    found = allocate(chain, [Cost((g, g + 1), 9) for g in range(54)], 54 * 9 * 24 * 24)
    assert 0.98 < found.cost / (54 * 9 * 24 * 24) <= 1
    assert found.damage < 55 * 0.25
    stages = [Cost((s, 3 + 9 * s + b), 18) for s in range(3) for b in range(9)] + [
        Cost((0, 12), 9),
        Cost((1, 21), 9),
    ]
    assert allocate(chain[:30], stages, 27 * 18 * 24 * 24).damage <= 30 * 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([{4: 1.0}], [Cost((0,), 3)], 11),
            r"budget=11: no sizes cost so little; the least attainable cost is 12\.",
        ),
        (([{4: 1.0}], [Cost((0,), 0.1)], 0.3), r"least attainable cost is 0\.4"),
        (([{4: 1.0}], [], math.nan), "budget must be a number"),
        (([{4: 1.0}, {}], [], 1), "group 1 has no sizes"),
        (([{4.5: 1.0}], [], 1), "size must be an int of at least 0"),
        (([{4: math.inf}], [], 1), r"damages\[0\]\[4\] is inf"),
        (([{4: 1.0}], [Cost((0, 1), 3)], 11), "depends on group 1, but there are damages for 1 groups"),
        (([{4: 1.0, 8: 0.0}], [Cost((0,), {(8,): 1.0})], 0.5), r"no entry for the sizes \(4,\)"),
        (
            ([dict.fromkeys(range(12), 0.0)] * 9, [Cost((a, b), 1) for a in range(9) for b in range(a)], -1),
            "give these groups fewer sizes",
        ),
    ],
)
def test_what_is_refused(arguments, message) -> None:
    with pytest.raises(TPVError, match=message):
        allocate(*arguments)


@pytest.mark.parametrize("amount", [-1, math.nan, math.inf, "3", True, {(4,): -0.5}])
def test_costs_that_are_refused(amount) -> None:
    with pytest.raises(TPVError, match="a cost must be a finite number of at least 0"):
        Cost((0,), amount)


def test_groups_and_resolutions_are_whole_numbers() -> None:
    with pytest.raises(TPVError, match="groups must be an int"):
        Cost((-1,), 3)
    with pytest.raises(TPVError, match="resolution must be an int of at least 1"):
        allocate([{4: 1.0}], [], 1, resolution=0)
