"""What the algebra gives for free."""

from __future__ import annotations

import pytest
import torch
from cases import Correlated, randn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tpv

many_examples = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**31)
EXACT = tpv.Exact()


def network(seed: int, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def value(
    model: nn.Module, data: object, perturbation: tpv.Perturbation, estimator: tpv.Estimator = EXACT
) -> float:
    return tpv.estimate(model, data, perturbation, estimator=estimator).value


@many_examples
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_scaling_the_covariance_scales_tpv(seed: int, scale: float) -> None:
    model, x = network(seed), randn(4, 4, seed=seed)
    assert value(model, x, tpv.Isotropic(scale)) == pytest.approx(
        scale**2 * value(model, x, tpv.Isotropic(1.0)), rel=1e-12
    )


@many_examples
@given(seed=seeds)
def test_independent_perturbations_add(seed: int) -> None:
    model, x = network(seed), randn(4, 4, seed=seed)
    a, b = tpv.Isotropic(0.3, params="0.*"), tpv.Quantization(bits=5)
    assert value(model, x, a + b) == pytest.approx(value(model, x, a) + value(model, x, b), rel=1e-12)


@many_examples
@given(seed=seeds)
def test_rotating_the_outputs_changes_nothing(seed: int) -> None:
    model, x = network(seed), randn(4, 4, seed=seed)
    rotation = torch.linalg.qr(randn(3, 3, seed=seed)).Q

    def rotated(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch) @ rotation

    expected = value(model, x, tpv.Isotropic(1.0))
    assert tpv.estimate(
        model, x, tpv.Isotropic(1.0), estimator=EXACT, forward=rotated
    ).value == pytest.approx(expected, rel=1e-12)


@many_examples
@given(seed=seeds)
def test_duplicating_data_changes_nothing_and_an_output_doubles(seed: int) -> None:
    model, x = network(seed), randn(4, 4, seed=seed)
    expected = value(model, x, tpv.Isotropic(1.0))
    assert value(model, torch.cat([x, x]), tpv.Isotropic(1.0)) == pytest.approx(expected, rel=1e-12)
    twice = tpv.estimate(
        model, x, tpv.Isotropic(1.0), estimator=EXACT, forward=lambda m, b: torch.cat([m(b), m(b)], 1)
    )
    assert twice.value == pytest.approx(2 * expected, rel=1e-12)


@many_examples
@given(seed=seeds, order=st.permutations(range(7)), sizes=st.sampled_from([[7], [1] * 7, [3, 4], [5, 2]]))
def test_order_and_size_of_batches_do_not_matter(seed: int, order: list[int], sizes: list[int]) -> None:
    model, x = network(seed), randn(7, 4, seed=seed)
    one = tpv.estimate(model, x, tpv.Isotropic(1.0), estimator=EXACT)
    other = tpv.estimate(
        model, list(x[order].split(sizes)), tpv.Isotropic(1.0), estimator=EXACT, chunk_size=2
    )
    assert other.value == pytest.approx(one.value, rel=1e-12)
    assert other.stderr == pytest.approx(one.stderr, rel=1e-9)
    assert other.n_examples == 7


@many_examples
@given(seed=seeds)
def test_a_model_linear_in_its_weights_has_no_gap(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Linear(4, 3).double(), randn(5, 4, seed=seed)
    perturbation = tpv.Quantization(bits=3, error="actual") if seed % 2 else tpv.Isotropic(1.0)
    result = tpv.linearity(model, x, perturbation)
    assert result.value < 1e-20
    assert result.ratio == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "global"])
def test_more_bits_move_less(symmetric: bool, granularity: str) -> None:
    model, x = network(0), randn(4, 4)
    values = [
        value(model, x, tpv.Quantization(bits=b, symmetric=symmetric, granularity=granularity))
        for b in range(2, 17)
    ]
    assert values == sorted(values, reverse=True)


def test_probes_do_not_depend_on_the_chunk_size() -> None:
    model, x = network(0), randn(9, 4)
    for probes in (1, 2):
        values = [
            tpv.estimate(
                model, x, tpv.Isotropic(1.0), estimator=tpv.Hutchinson(probes), chunk_size=size
            ).value
            for size in (1, 2, 5, 100)
        ]
        assert values == pytest.approx([values[0]] * 4, rel=1e-12)


def test_a_users_perturbation_goes_by_draws_and_agrees_with_its_covariance() -> None:
    model, x = network(0), randn(6, 4)
    ones = tpv.Displacement({name: p.detach() + 1 for name, p in model.named_parameters()})
    result = tpv.estimate(model, x, Correlated(), estimator=tpv.LinearizedMonteCarlo(draws=400))
    assert abs(result.value - value(model, x, ones, tpv.Auto())) < 4 * result.mc_stderr
    assert tpv.estimate(model, x, Correlated()).metadata["estimator"] == "LinearizedMonteCarlo(draws=16)"
