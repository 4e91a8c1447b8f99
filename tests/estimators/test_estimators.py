"""Unbiased, and with error bars that mean what they say."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import tpv
from tpv.jacobian import Sweep
from tpv.model.linearization import Linearization


def network(outputs: int = 5) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def test_sign_probes_average_to_the_trace_over_all_sign_vectors() -> None:
    model, x = network(3), randn(4, 6)
    lin = Linearization(model)
    with Sweep(lin, {name: torch.ones(()).double() for name in lin.weights}).linearized(x) as (_, squares):
        every = [
            squares(torch.tensor(signs).double().expand(4, 3))
            for signs in itertools.product([-1, 1], repeat=3)
        ]
    expected = tpv.estimate(model, x, tpv.Isotropic(1.0), estimator=tpv.Exact()).value
    assert torch.stack(every).mean(0).sum(1).mean().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("probes", [1, 2, 4])
@pytest.mark.parametrize("outputs", [5, 8])
def test_hutchinson_is_unbiased_and_its_error_bar_is_calibrated(probes: int, outputs: int) -> None:
    model, x, perturbation = network(outputs), randn(40, 6), tpv.Isotropic(0.1)
    exact = tpv.estimate(model, x, perturbation, estimator=tpv.Exact())
    runs = [
        tpv.estimate(model, x, perturbation, estimator=tpv.Hutchinson(probes), generator=seed)
        for seed in range(150)
    ]
    values = torch.tensor([r.value for r in runs])
    spread = values.std().item()
    assert abs(values.mean().item() - exact.value) < 4 * spread / math.sqrt(len(runs))
    stated = math.sqrt(sum(r.mc_stderr**2 for r in runs) / len(runs))
    assert stated == pytest.approx(spread, rel=4 / math.sqrt(2 * len(runs)))
    layer = torch.tensor([r.layers["0"].value for r in runs])
    assert abs(layer.mean().item() - exact.layers["0"].value) < 4 * layer.std().item() / math.sqrt(len(runs))


class Counting(nn.Module):
    """Notes how many examples go through at a time."""

    rows: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x


def test_the_second_probe_takes_a_few_rows_of_the_same_pass_and_no_example_counts_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for check in ("tpv.model.checks.check_rows", "tpv.estimation.loop.check_last"):  # rows of their own
        monkeypatch.setattr(check, lambda *_: None)
    torch.manual_seed(0)
    layers = Counting(), nn.Linear(6, 5)
    model, x, perturbation = nn.Sequential(*layers).double(), randn(100, 6), tpv.Isotropic(0.1)
    results, rows = {}, {}
    for chunk in (100, 50, 16, 1):
        Counting.rows.clear()
        estimator = tpv.Hutchinson(1)
        results[chunk] = tpv.estimate(model, [x], perturbation, estimator=estimator, chunk_size=chunk)
        rows[chunk] = sum(Counting.rows)
    for result in results.values():
        assert result.value == pytest.approx(results[100].value, rel=1e-12)
        assert result.mc_stderr == pytest.approx(results[100].mc_stderr, rel=1e-12)
        assert result.n_examples == 100
    fixed = rows[100] - 100 - (8 + 3)
    assert fixed < 30
    assert set(rows.values()) == {rows[100]}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [tpv.LinearizedMonteCarlo(draws=6), tpv.MonteCarlo(draws=6)])
def test_draws_are_unbiased_and_their_error_bar_is_calibrated(estimator: tpv.Estimator) -> None:
    model, x, perturbation = network(), randn(30, 6), tpv.Isotropic(0.001)
    exact = tpv.estimate(model, x, perturbation, estimator=tpv.Exact())
    runs = [tpv.estimate(model, x, perturbation, estimator=estimator, generator=seed) for seed in range(150)]
    values = torch.tensor([r.value for r in runs])
    assert abs(values.mean().item() - exact.value) < 4 * values.std().item() / math.sqrt(len(runs))
    stated = math.sqrt(sum(r.mc_stderr**2 for r in runs) / len(runs))
    assert stated == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * len(runs)))


@pytest.mark.slow
def test_standard_error_covers_the_sampling_of_examples() -> None:
    model, perturbation = network(), tpv.Isotropic(0.1)
    population = tpv.estimate(model, randn(20000, 6, seed=9), perturbation, estimator=tpv.Exact())
    runs = [
        tpv.estimate(model, randn(50, 6, seed=100 + seed), perturbation, estimator=tpv.Hutchinson())
        for seed in range(150)
    ]
    z = torch.tensor([(r.value - population.value) / r.stderr for r in runs])
    assert abs(z.mean().item()) < 4 / math.sqrt(len(runs)) + 0.2
    assert z.std().item() == pytest.approx(1, rel=0.3)


def test_one_draw_cannot_tell_its_error() -> None:
    result = tpv.estimate(network(), randn(5, 6), tpv.Isotropic(0.1), estimator=tpv.MonteCarlo(draws=1))
    assert math.isnan(result.mc_stderr)
    assert math.isnan(result.stderr)
    assert "± ?" in str(result)


def test_draws_are_drawn_again_when_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), randn(5, 6)
    kept = tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=tpv.MonteCarlo(4), chunk_size=2)
    monkeypatch.setattr("tpv.estimators.draws._CACHE_BYTES", 0)
    assert (
        tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=tpv.MonteCarlo(4), chunk_size=2).value
        == kept.value
    )


def test_the_default_estimator_is_named_in_the_metadata() -> None:
    model, x = network(), randn(10, 6)
    chosen = [
        tpv.estimate(model, x, perturbation).metadata["estimator"]
        for perturbation in (tpv.Isotropic(1.0), tpv.Quantization(error="actual"))
    ]
    assert chosen == ["Exact()", "Exact(), one Jacobian-vector product"]
    many = tpv.estimate(model, randn(2000, 6), tpv.Isotropic(1.0))
    assert many.metadata["estimator"] == "Hutchinson(probes=1)"
    unknown_length = tpv.estimate(model, _Endless(), tpv.Isotropic(1.0))
    assert unknown_length.metadata["estimator"] == "Hutchinson(probes=1)"


class _Endless:
    """A re-iterable without a length."""

    def __iter__(self):
        return iter([randn(3, 6), randn(2, 6)])


def test_estimators_refuse_what_they_cannot_treat() -> None:
    model, x = network(), randn(3, 6)
    with pytest.raises(tpv.TPVError, match=r"use Exact\(\)"):
        tpv.estimate(model, x, tpv.Quantization(error="actual"), estimator=tpv.Hutchinson())
    from cases import Correlated

    for estimator in (tpv.Exact(), tpv.Hutchinson()):
        with pytest.raises(tpv.TPVError, match="LinearizedMonteCarlo"):
            tpv.estimate(model, x, Correlated(), estimator=estimator)
    for make in (tpv.Hutchinson, tpv.MonteCarlo, tpv.LinearizedMonteCarlo):
        with pytest.raises(tpv.TPVError, match="must be an int of at least 1"):
            make(0)


def test_forward_mode_falls_back_to_double_backward() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(Cube.apply(self.first(x)))

    torch.manual_seed(0)
    model, x = Model().double(), randn(4, 6)
    perturbation = tpv.Quantization(bits=3, error="actual")
    assert tpv.estimate(model, x, perturbation).value == pytest.approx(
        tpv.testing.dense_tpv(model, x, perturbation)["total"], rel=1e-10
    )
