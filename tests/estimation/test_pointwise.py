"""The value of every example."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import pytest
import torch
from cases import randn, settled
from torch import nn

import tpv

TRAIN, TEST = randn(8, 4), randn(11, 4, seed=1)
LABELS = tpv.LabelNoise(1e-3, TRAIN, tpv.GradientDescent(lr=0.1, steps=3))


def network() -> nn.Module:
    torch.manual_seed(1)
    return settled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


CASES = [
    (tpv.Isotropic(0.1), tpv.Exact()),
    (tpv.Isotropic(0.1), tpv.Hutchinson(2)),
    (tpv.Isotropic(0.1), tpv.LinearizedMonteCarlo(3)),
    (tpv.Isotropic(0.1), tpv.MonteCarlo(3)),
    (tpv.Quantization(bits=4, error="actual"), tpv.MonteCarlo()),
    (tpv.Quantization(bits=4, error="actual"), tpv.Exact()),
    (LABELS, tpv.Exact()),
    (LABELS, tpv.HutchPlusPlus(3, 2)),
    (tpv.Retraining(LABELS, runs=2), tpv.Auto()),
]


@pytest.mark.parametrize(("perturbation", "estimator"), CASES, ids=repr)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_values_of_examples_average_to_the_value(
    perturbation: tpv.PerturbationSpec, estimator: tpv.Estimator, chunk_size: int | None
) -> None:
    options: dict[str, Any] = {"estimator": estimator, "chunk_size": chunk_size}
    plain = tpv.estimate(network(), TEST, perturbation, **options)
    assert plain.pointwise is None
    result = tpv.estimate(network(), TEST, perturbation, pointwise=True, **options)
    assert result.value == plain.value
    values = result.pointwise
    assert (values.shape, values.dtype, values.device.type) == ((11,), torch.float64, "cpu")
    assert values.mean().item() == pytest.approx(result.value, rel=1e-12)
    if math.isfinite(result.stderr) and not result.draws:
        assert (values.var().sqrt() / 11**0.5).item() == pytest.approx(result.stderr, rel=1e-9)


@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.MonteCarlo(3), tpv.LinearizedMonteCarlo(3)], ids=repr)
def test_a_value_is_that_of_the_example_alone(estimator: tpv.Estimator) -> None:
    model, noise = network(), tpv.Isotropic(0.1)
    together = tpv.estimate(model, list(TEST.split(4)), noise, estimator=estimator, pointwise=True).pointwise
    alone = [tpv.estimate(model, x.unsqueeze(0), noise, estimator=estimator).value for x in TEST]
    assert torch.allclose(together, torch.tensor(alone, dtype=torch.float64), rtol=1e-10)
    assert len(set(together.tolist())) == 11


def test_they_are_averaged_over_draws() -> None:
    model, noise = network(), tpv.Isotropic(0.1)
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    result = tpv.estimate(model, TEST, noise, estimator=tpv.MonteCarlo(3), pointwise=True)
    by_hand = torch.zeros(11, dtype=torch.float64)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        delta = noise.sample(tpv.Weights(model), generator)
        displaced = {n: p.detach() + delta[n] for n, p in model.named_parameters()}
        change = torch.func.functional_call(model, displaced, (TEST,)) - model(TEST)
        by_hand += change.detach().square().sum(1) / 3
    assert torch.allclose(result.pointwise, by_hand, rtol=1e-10)


def test_they_survive_json() -> None:
    result = tpv.estimate(network(), TEST, tpv.Isotropic(0.1), pointwise=True)
    again = tpv.TPVResult.from_json(result.to_json())
    assert again == result
    assert torch.equal(again.pointwise, result.pointwise)
    assert json.loads(result.to_json())["pointwise"] == result.pointwise.tolist()
    without = tpv.estimate(network(), TEST, tpv.Isotropic(0.1))
    assert tpv.TPVResult.from_json(without.to_json()).pointwise is None


def test_wrong_values_are_refused() -> None:
    with pytest.raises(tpv.TPVError, match=r"estimate\(pointwise='yes'\): pointwise must be True or False"):
        tpv.estimate(network(), TEST, tpv.Isotropic(0.1), pointwise="yes")


@pytest.mark.parametrize("verb", [tpv.estimate, tpv.linearity, tpv.stability])
def test_verbs_have_few_arguments(verb: Any) -> None:
    parameters = inspect.signature(verb).parameters.values()
    assert len(parameters) <= 12
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert len(positional) == (4 if verb is tpv.stability else 3)
