"""The contract of a perturbation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpv.model.linearization import Linearization
from tpv.model.twin import twin_of
from tpv.model.weights import Weights
from tpv.perturbations import PerturbationSpec
from tpv.perturbations.bound import Bound
from tpv.testing.unchanged import assert_unchanged


def check_perturbation(perturbation: PerturbationSpec, model: nn.Module, draws: int = 400) -> None:
    r"""Check that a perturbation keeps the contract on a model.

    Draws have known names, the parameters' shapes and finite values; the same seed gives the same draw and
    another seed another one (unless ``deterministic``); variances are non-negative and broadcast; draws
    have mean zero and the stated variances, each parameter's total with |z| < 5; the model is unchanged.

    Args:
        perturbation: the perturbation.
        model: a small model.
        draws: number of draws for the statistical part.

    Raises:
        AssertionError: naming what is broken.
        TPVError: for what the library would refuse: names, shapes, values, and a draw that writes to the
            model's weights, before it does.

    Cost: ``draws`` draws; no forward passes.

    Example:
        >>> import torch, tpv, tpv.testing
        >>> tpv.testing.check_perturbation(tpv.Quantization(bits=4), torch.nn.Linear(20, 10))
    """
    with assert_unchanged(model), twin_of(model) as (twin, _):
        lin = Linearization(twin)
        bound = perturbation.bind(lin)
        _check_seeds(bound, perturbation.deterministic)
        variance = None if perturbation.deterministic else bound.variance()
        if variance is not None:
            _check_moments(bound, lin.weights, variance, draws)


def _check_seeds(bound: Bound, deterministic: bool) -> None:
    first, again, other = (bound.sample(_seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in first), (
        "the same seed gave different draws: use the generator for all randomness"
    )
    same = all(torch.equal(first[n], other[n]) for n in first)
    assert same or not deterministic, "deterministic is True, but two seeds gave different draws"
    assert deterministic or not same, (
        "two seeds gave the same draw: set deterministic = True if that is meant"
    )


def _check_moments(bound: Bound, weights: Weights, variance: dict[str, Tensor], draws: int) -> None:
    samples = [bound.sample(_seeded(seed)) for seed in range(draws)]
    for name, stated in variance.items():
        drawn = torch.stack([s[name].double().flatten() for s in samples])
        full = stated.double().expand(weights[name].shape).flatten()
        spread = full.sum().sqrt()
        mean = drawn.sum(1)
        z_mean = mean.mean() / (spread / draws**0.5) if spread > 0 else mean.abs().max()
        assert abs(z_mean) < 5, f"the mean of {name!r} is not zero (z = {z_mean:.1f})"
        totals = drawn.square().sum(1)
        error = totals.std() / draws**0.5
        gap = totals.mean() - full.sum()
        assert abs(gap) < 5 * error + 1e-9 * full.sum(), (
            f"draws of {name!r} have a total variance of {totals.mean():.4g}, and variance() says "
            f"{full.sum():.4g}"
        )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
