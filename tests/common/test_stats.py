"""Sums in, numbers out."""

from __future__ import annotations

import math

import pytest
import torch
from cases import randn
from hypothesis import given, settings
from hypothesis import strategies as st

from tpv.common.errors import TPVError
from tpv.common.format import plus_minus
from tpv.common.stats import Estimate, Moments, independent_ratio


def test_means_and_errors_of_examples() -> None:
    values = randn(50, 2)
    moments = Moments(["a", "b"])
    for part in values.split([1, 20, 29]):
        moments.update(part)
    found = moments.result().estimates()["b"]
    assert found.value == pytest.approx(values[:, 1].mean().item(), rel=1e-12)
    assert found.stderr == pytest.approx(values[:, 1].std().item() / math.sqrt(50), rel=1e-12)
    assert found.mc_stderr == 0


@given(st.integers(2, 40), st.integers(0, 4), st.integers(1, 3), st.floats(1e-3, 1e3), st.data())
@settings(max_examples=60, deadline=None)
def test_shards_merged_are_all_at_once(n: int, draws: int, m: int, scale: float, data: st.DataObject) -> None:
    shape = (n, draws, m) if draws else (n, m)
    seed, cut = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, n))
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(shape, generator=generator, dtype=torch.float64).square()
    noise = None if draws else scale * torch.randn(n, m, generator=generator, dtype=torch.float64)
    names = [f"q{i}" for i in range(m)]
    whole, *shards = (Moments(names, draws) for _ in range(3))
    whole.update(values, noise)
    for shard, part in zip(shards, (slice(cut), slice(cut, None)), strict=True):
        shard.update(values[part], None if noise is None else noise[part])
    shards[0].merge(shards[1])
    merged, expected = shards[0].result(), whole.result()
    assert merged.count == expected.count == n
    for name in ("mean", "covariance", "mc_covariance", "draw_means"):
        ours, theirs = getattr(merged, name), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * scale**2, equal_nan=True)


def test_other_quantities_are_not_merged_and_nothing_has_no_mean() -> None:
    with pytest.raises(TPVError, match="same quantities"):
        Moments(["a", "b"]).merge(Moments(["a"]))
    with pytest.raises(TPVError, match="same quantities"):
        Moments(["a"], draws=2).merge(Moments(["a"], draws=3))
    with pytest.raises(TPVError, match="no examples"):
        Moments(["a"]).result()


def test_shared_draws_count_on_top_of_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    totals, stated = [], []
    for _ in range(400):
        examples, draws = torch.randn(20, 1, generator=generator), torch.randn(1, 10, generator=generator)
        moments = Moments(["q"], draws=10)
        moments.update((5 + examples + draws).unsqueeze(-1))
        found = moments.result().estimates()["q"]
        totals.append(found.value)
        stated.append(found.stderr**2)
    assert sum(stated) / 400 == pytest.approx(torch.tensor(totals).var().item(), rel=4 * math.sqrt(2 / 400))


def test_ratio_by_the_delta_method_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        b = 3 + torch.randn(60, generator=generator)
        a = 0.5 * b + 0.3 * torch.randn(60, generator=generator)
        moments = Moments(["a", "b"])
        moments.update(torch.stack([a, b], 1))
        found.append(moments.result().ratio("a", "b"))
    values = torch.tensor([r.value for r in found])
    stated = math.sqrt(sum(r.stderr**2 for r in found) / 400)
    assert stated == pytest.approx(values.std().item(), rel=4 / math.sqrt(800))


def test_independent_ratio_pairs_shared_draws() -> None:
    a, b = Estimate(2.0, 0.2, 0.2), Estimate(1.0, 0.1, 0.1)
    unpaired = independent_ratio(a, b)
    assert unpaired.stderr == pytest.approx(math.hypot(0.2, 2 * 0.1))
    draws = torch.tensor([0.8, 1.0, 1.2, 1.0], dtype=torch.float64)
    assert independent_ratio(a, b, 2 * draws, draws).stderr == 0
    assert math.isnan(independent_ratio(a, Estimate(0.0, 0.0, 0.0)).value)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (38.82, 0.53, "38.8 ± 0.5"),
        (38.82, 0.153, "38.82 ± 0.15"),
        (0.0123, 0.004, "0.012 ± 0.004"),
        (1234.0, 40.0, "1230 ± 40"),
        (304600.0, 9000.0, "(3.05 ± 0.09)e5"),
        (2.5e-6, 3e-7, "(2.5 ± 0.3)e-6"),
        (1.0, math.nan, "1 ± ?"),
        (math.nan, 1.0, "cannot tell"),
        (3.0, 0.0, "3 ± 0"),
        (0.0, 0.0, "0 ± 0"),
    ],
)
def test_numbers_are_rounded_by_their_error(value: float, stderr: float, text: str) -> None:
    assert plus_minus(value, stderr) == text
