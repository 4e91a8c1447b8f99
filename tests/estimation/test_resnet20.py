"""A real network on real data."""

from __future__ import annotations

import functools

import cifar10_resnet20 as target
import pytest
import torch
from cases import randn, settled
from torch import nn

import tpv
from tpv.testing import assert_unchanged, dense_tpv

pytestmark = pytest.mark.slow


@functools.cache
def trained() -> nn.Module:
    return target.model()


@functools.cache
def images(split: str, count: int) -> torch.Tensor:
    return target.images(split)[:count]


@pytest.mark.parametrize(
    "perturbation",
    [
        tpv.Isotropic(1.0),
        tpv.Quantization(bits=4),
        tpv.Quantization(bits=4, granularity="group", group_size=16),
    ],
    ids=repr,
)
def test_every_layer_agrees_with_the_dense_jacobian(perturbation: tpv.Perturbation) -> None:
    torch.manual_seed(0)
    model, x = settled(target.CifarResNet(8)), randn(3, 3, 16, 16)
    result = tpv.estimate(model, x, perturbation, estimator=tpv.Exact())
    reference = dense_tpv(model, x, perturbation)
    assert result.value == pytest.approx(reference["total"], rel=1e-10)
    for name, layer in result.layers.items():
        assert layer.value == pytest.approx(reference[name], rel=1e-10), name
    assert "slow_routes" not in result.metadata


@pytest.mark.data
def test_the_trained_network_is_right_in_float32() -> None:
    x = images("test", 4)
    fast = tpv.estimate(trained(), x, tpv.Isotropic(1.0))
    exact = tpv.estimate(target.model().double(), x.double(), tpv.Isotropic(1.0))
    assert fast.value == pytest.approx(exact.value, rel=1e-3)


@pytest.mark.data
def test_estimators_agree_within_their_errors() -> None:
    model, x, perturbation = trained(), images("test", 128), tpv.Quantization(bits=8)
    with assert_unchanged(model):
        exact = tpv.estimate(model, x, perturbation, estimator=tpv.Exact())
        others = [tpv.estimate(model, x, perturbation, estimator=e) for e in (tpv.Hutchinson(), tpv.Hutchinson(3), tpv.LinearizedMonteCarlo(6), tpv.MonteCarlo(12))]  # fmt: skip
    for other in others:
        assert abs(other.value - exact.value) < 4 * other.mc_stderr, other


@pytest.mark.data
def test_first_order_holds_at_eight_bits_and_is_flagged_at_four() -> None:
    eight, four = (
        tpv.linearity(trained(), images("test", 64), tpv.Quantization(bits=b), draws=3) for b in (8, 4)
    )
    assert eight.value < 0.12
    assert eight.holds
    assert four.value > 0.12
    assert "first-order approximation borderline" in four.verdict


@pytest.mark.data
def test_the_global_step_of_the_paper_overstates_a_real_quantizer() -> None:
    x = images("test", 64)
    paper = tpv.estimate(trained(), x, tpv.Quantization(bits=8, granularity="global", symmetric=False))
    actual = tpv.estimate(trained(), x, tpv.Quantization(bits=8, error="actual"))
    assert paper.value > 10 * actual.value


@pytest.mark.data
def test_train_tpv_is_a_good_proxy_for_test_tpv() -> None:
    train, test = images("train", 256), images("test", 256)
    result = tpv.stability(trained(), train, test, tpv.Isotropic(1.0), estimator=tpv.Hutchinson())
    assert 1 / 1.5 < result.ratio < 1.5
    assert result.ratio_stderr < 0.1


def test_without_data_the_example_names_what_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPV_DATA_DIR", raising=False)
    with pytest.raises(SystemExit, match=r"uoft-cs/cifar10.*cifar10_resnet20\.safetensors"):
        target.model()
