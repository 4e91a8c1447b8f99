"""Fits as spectral filters, against explicit optimization."""

from __future__ import annotations

import pytest
import torch
from cases import filtered, randn
from kernels import (
    assert_close,
)
from torch import nn

from tpv import GradientDescent, Interpolation, Ridge, TPVError


@pytest.mark.parametrize(
    "fit",
    [
        GradientDescent(lr=0.1, steps=1),
        GradientDescent(lr=0.1, steps=30),
        GradientDescent(lr=0.1, steps=30, gamma=0.7),
        GradientDescent(lr=0.1, steps=30, momentum=0.9),
        GradientDescent(lr=0.05, steps=17, momentum=0.5, gamma=0.3),
    ],
    ids=repr,
)
def test_gradient_descent_is_what_sgd_does(fit: GradientDescent) -> None:
    j, noise = randn(12, 7), randn(12, seed=1)
    delta = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([delta], lr=fit.lr, momentum=fit.momentum)
    for _ in range(fit.steps):
        optimizer.zero_grad()
        (nn.functional.mse_loss(j @ delta, noise) + fit.gamma / 2 * delta.square().sum()).backward()
        optimizer.step()
    assert_close(j.T @ (filtered(j @ j.T, fit, 12) @ noise), delta.detach())


def test_the_default_learning_rate_is_one_over_the_largest_curvature() -> None:
    k = torch.tensor([6.0, 3.0, 0.0]).double()
    fit = GradientDescent(lr=None, steps=3, gamma=0.5)
    assert fit.resolved(torch.float64, 4, 6.0) == GradientDescent(lr=1 / 3.5, steps=3, gamma=0.5)
    assert_close(fit.filter(k, 4, 6.0), GradientDescent(lr=1 / 3.5, steps=3, gamma=0.5).filter(k, 4, 6.0))
    assert fit.filter(k, 4, 6.0)[0].item() == pytest.approx(1 / (6 + 4 * 0.5 / 2))  # at rest after one step
    assert GradientDescent(lr=0.1, steps=3).resolved(torch.float64, 4, 6.0).lr == 0.1


def test_ridge_is_the_minimum() -> None:
    j, noise, gamma = randn(12, 7), randn(12, seed=1), 0.3
    expected = torch.linalg.solve(2 / 12 * j.T @ j + gamma * torch.eye(7).double(), 2 / 12 * j.T @ noise)
    assert_close(j.T @ (filtered(j @ j.T, Ridge(gamma), 12) @ noise), expected)
    assert_close(
        filtered(j @ j.T, GradientDescent(lr=0.1, steps=20000, gamma=gamma), 12) @ (j @ expected),
        filtered(j @ j.T, Ridge(gamma), 12) @ (j @ expected),
    )


@pytest.mark.parametrize("rank", [3, 7, 12])
def test_interpolation_is_least_squares_of_least_norm(rank: int) -> None:
    j, noise = randn(12, rank) @ randn(rank, 20, seed=2), randn(12, seed=1)
    expected = torch.linalg.lstsq(j, noise.unsqueeze(1), driver="gelsd", rcond=1e-7).solution[:, 0]
    assert_close(j.T @ (filtered(j @ j.T, Interpolation(), 12) @ noise), expected, 1e-8)


def test_interpolation_drops_what_is_below_its_threshold() -> None:
    k = torch.tensor([10.0, 1.0, 0.11, 0.09, 0.0]).double()
    assert_close(
        Interpolation(0.01).filter(k, 5, 10.0),
        torch.tensor([0.1, 1.0, 1 / k[2].item(), 0.0, 0.0]).double(),
        1e-7,
    )
    assert [Interpolation().resolved(d, 5, 10.0).rcond for d in (torch.float32, torch.float64)] == [
        1e-5,
        1e-10,
    ]
    assert Interpolation(0.01).resolved(torch.float32, 5, 10.0).rcond == 0.01


def test_the_learning_rate_of_gradient_descent_may_be_left_out() -> None:
    assert GradientDescent(steps=5) == GradientDescent(lr=None, steps=5)
    with pytest.raises(TPVError, match="steps must be an int"):
        GradientDescent(lr=0.1)
