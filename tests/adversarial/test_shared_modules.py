"""A layer that a model holds under several names."""

from __future__ import annotations

import pytest
import torch
from cases import randn
from torch import nn

import tpv
from tpv.testing import assert_unchanged, dense_tpv


def network() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.BatchNorm1d(5), nn.Linear(5, 2)).double().eval()


def displaced(model: nn.Module) -> nn.Module:
    other = network()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    return other


@pytest.mark.parametrize("size", [8, 4, 1])
def test_every_batch_is_measured_at_the_trained_weights(size: int) -> None:
    model, x = network(), randn(8, 5)
    other = displaced(model)
    with torch.no_grad():
        expected = (other(x) - model(x)).square().sum(1).mean().item()
    with assert_unchanged(model):
        result = tpv.estimate(
            model, list(x.split(size)), tpv.Displacement(other.state_dict()), estimator=tpv.MonteCarlo(1)
        )
    assert result.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [8, 1])
def test_draws_and_sweeps_agree_with_the_dense_jacobian(size: int) -> None:
    model, x = network(), randn(8, 5)
    batches = list(x.split(size))
    exact = tpv.estimate(model, batches, tpv.Isotropic(0.1), estimator=tpv.Exact())
    assert exact.value == pytest.approx(dense_tpv(model, x, tpv.Isotropic(0.1))["total"], rel=1e-10)
    drawn = tpv.estimate(model, batches, tpv.Isotropic(1e-4), estimator=tpv.MonteCarlo(64))
    assert abs(drawn.value * 1e6 - exact.value) < 4e6 * drawn.mc_stderr
