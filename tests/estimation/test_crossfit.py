"""Noise on training inputs, evaluated on other training inputs and on unseen ones."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from cases import randn, seeded, settled
from kernels import (
    TEST,
    TRAIN,
    label_noise,
    linear,
    mlp,
    value,
)
from torch import nn

import tpv
from tpv import Interpolation, Ridge


@pytest.mark.parametrize("examples", [10, 9])
def test_cross_fitting_by_hand(examples: int) -> None:
    model, train = mlp(), TRAIN[:examples]
    result = tpv.stability(model, train, TEST, label_noise(data=train), generator=3)
    first = torch.randperm(examples, generator=seeded(3)) < examples // 2
    halves = train[first], train[~first]
    assert len(halves[0]) == examples // 2
    across = [tpv.estimate(model, b, label_noise(data=a)) for a, b in (halves, halves[::-1])]
    unseen = [tpv.estimate(model, TEST, label_noise(data=a)) for a in halves]
    n = [r.n_examples for r in across]
    share = [x / examples for x in n]
    assert n == [examples - examples // 2, examples // 2]
    assert result.cross_fitted.value == pytest.approx(
        sum(p * r.value for p, r in zip(share, across, strict=True)), rel=1e-12
    )
    assert result.cross_fitted.stderr == pytest.approx(
        math.hypot(*(p * r.stderr for p, r in zip(share, across, strict=True))), rel=1e-12
    )
    assert result.test_of_halves.value == pytest.approx(statistics.fmean(r.value for r in unseen), rel=1e-12)
    assert result.test_of_halves.stderr == pytest.approx(
        statistics.fmean(r.stderr for r in unseen), rel=1e-12
    )
    assert (result.cross_fitted.n_examples, result.test_of_halves.n_examples) == (examples, 8)
    assert result.ratio == result.cross_fitted.value / result.test_of_halves.value
    assert result.in_sample_ratio.value == result.train.value / result.test.value
    assert result.train.value == value(model, train, label_noise(data=train))
    assert result.test.value == value(model, TEST, label_noise(data=train))
    assert result.cross_fitted.metadata["noise_on"] == "each half of the training examples in turn"


def test_cross_fitting_pairs_the_draws_of_both_sides() -> None:
    result = tpv.stability(mlp(), TRAIN, TEST, label_noise(), estimator=tpv.LinearizedMonteCarlo(50))
    assert len(result.cross_fitted.draws) == len(result.test_of_halves.draws) == 50
    assert torch.corrcoef(torch.tensor([result.cross_fitted.draws, result.test_of_halves.draws]))[0, 1] > 0.5
    assert math.isnan(result.leverage)
    assert "reproduces a part of the noise" in str(result)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_fitted_inputs_tell_what_unseen_inputs_see(seed: int) -> None:
    torch.manual_seed(seed)
    model = settled(nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3)))
    train, test = randn(60, 10, seed=10 + seed), randn(200, 10, seed=20 + seed)
    result = tpv.stability(model, train, test, label_noise(Ridge(1e-4), train))
    assert abs(result.ratio - 1) < 4 * result.ratio_stderr
    assert result.ratio_stderr < 0.25
    assert result.in_sample_ratio.value < 1 - 4 * result.in_sample_ratio.stderr


@pytest.mark.parametrize(("outputs", "center"), [(1, True), (3, True), (3, False)])
def test_leverage_is_the_part_of_the_noise_that_is_followed(outputs: int, center: bool) -> None:
    model, x, t = linear(20, outputs), randn(6, 20), randn(5, 20)
    assert tpv.stability(
        model, x, t, label_noise(Interpolation(), x, center=center)
    ).leverage == pytest.approx(1, rel=1e-6)
    half = tpv.stability(model, x, t, label_noise(Ridge(0.5), x, center=center))
    assert 0.1 < half.leverage < 0.99
    assert half.leverage == pytest.approx(
        half.train.spectrum.degrees_of_freedom / (6 * max(outputs - center, 1)), rel=1e-12
    )


def test_the_noise_of_stability_is_on_its_training_inputs() -> None:
    one, pair = TRAIN[:1], TRAIN[:2]
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN + 1e-9, TEST, label_noise())
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN[:-1], TEST, label_noise())
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN.flip(0), TEST, label_noise())
    same = tpv.stability(mlp(), TRAIN, TEST, label_noise())
    for train in (TRAIN.clone(), list(TRAIN.split(3)), [(TRAIN, torch.arange(10))]):
        assert tpv.stability(mlp(), train, TEST, label_noise()).ratio == pytest.approx(same.ratio, rel=1e-10)
    with pytest.raises(tpv.TPVError, match="at least two training examples, and there is 1"):
        tpv.stability(mlp(), one, TEST, label_noise(data=one))
    assert "cannot tell" in tpv.stability(mlp(), pair, TEST, label_noise(data=pair)).verdict
