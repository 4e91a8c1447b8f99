"""Sums in, numbers out."""

from __future__ import annotations

import math

import pytest
import torch
from cases import randn

from tpv.common.format import plus_minus
from tpv.common.stats import Estimate, Moments, independent_ratio


def test_means_and_errors_of_examples() -> None:
    values = randn(50, 2)
    moments = Moments(["a", "b"])
    for part in values.split([1, 20, 29]):
        moments.update(part)
    found = moments.estimates()["b"]
    assert found.value == pytest.approx(values[:, 1].mean().item(), rel=1e-12)
    assert found.stderr == pytest.approx(values[:, 1].std().item() / math.sqrt(50), rel=1e-12)
    assert found.mc_stderr == 0


def test_shards_add_up() -> None:
    values, noise = randn(20, 3, 2), randn(20, 2, seed=1)
    whole, left, right = (Moments(["a", "b"], draws=3) for _ in range(3))
    whole.update(values, noise)
    left.update(values[:7], noise[:7])
    right.update(values[7:], noise[7:])
    left.merge(right)
    for name in ("a", "b"):
        assert vars(left.estimates()[name]) == pytest.approx(vars(whole.estimates()[name]), rel=1e-12)
    with pytest.raises(ValueError, match="same quantities"):
        left.merge(Moments(["a"]))


def test_shared_draws_count_on_top_of_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    totals, stated = [], []
    for _ in range(400):
        examples, draws = torch.randn(20, 1, generator=generator), torch.randn(1, 10, generator=generator)
        moments = Moments(["q"], draws=10)
        moments.update((5 + examples + draws).unsqueeze(-1))
        found = moments.estimates()["q"]
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
        found.append(moments.ratio("a", "b"))
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
