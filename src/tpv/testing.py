"""The library's contract as checks that users can call in their own tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv._batches import batch_size, narrow
from tpv._guard import unchanged
from tpv.grouping import layer_of
from tpv.linearization import Forward, Linearization
from tpv.perturbations import Perturbation
from tpv.perturbations.base import diagonal, displacement
from tpv.weights import Weights


def check_perturbation(perturbation: Perturbation, model: nn.Module, draws: int = 400) -> None:
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
        TPVError: for names, shapes or values that the library would refuse.

    Cost: ``draws`` draws; no forward passes.

    Example:
        >>> import torch, tpv, tpv.testing
        >>> tpv.testing.check_perturbation(tpv.Quantization(bits=4), torch.nn.Linear(20, 10))
    """
    weights = Weights(model)
    first, again, other = (displacement(perturbation, weights, _seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in first), "the same seed gave different draws: use the generator for all randomness"
    same = all(torch.equal(first[n], other[n]) for n in first)
    assert same or not perturbation.deterministic, "deterministic is True, but two seeds gave different draws"
    assert perturbation.deterministic or not same, "two seeds gave the same draw: set deterministic = True if that is meant"
    with assert_unchanged(model):
        displacement(perturbation, weights, _seeded(0))
        variance = None if perturbation.deterministic else diagonal(perturbation, weights)
    if variance is not None:
        _check_moments(perturbation, weights, variance, draws)


def _check_moments(perturbation: Perturbation, weights: Weights, variance: dict[str, Tensor], draws: int) -> None:
    samples = [displacement(perturbation, weights, _seeded(seed)) for seed in range(draws)]
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
            f"draws of {name!r} have a total variance of {totals.mean():.4g}, and variance() says {full.sum():.4g}"
        )


def dense_jacobian(model: nn.Module, batch: Any, forward: Forward | None = None) -> dict[str, Tensor]:
    """J by brute force: parameter name → (N, K, *shape), one example and one output at a time.

    The reference for everything else. Cost: N·K backward passes of single examples.

    Example:
        >>> import torch, tpv.testing
        >>> tpv.testing.dense_jacobian(torch.nn.Linear(3, 2), torch.ones(5, 3))["weight"].shape
        torch.Size([5, 2, 2, 3])
    """
    lin = Linearization(model, forward)
    parameters = [model.get_parameter(name) for name in lin.weights]
    n = batch_size(batch)
    examples = []
    with unchanged(model), torch.enable_grad():
        for i in range(n):
            outputs = lin(narrow(batch, i, i + 1, n)).flatten()
            rows = [torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True) for y in outputs]
            examples.append([torch.stack([torch.zeros_like(p) if r[j] is None else r[j] for r in rows]) for j, p in enumerate(parameters)])
    return {name: torch.stack([example[j] for example in examples]) for j, name in enumerate(lin.weights)}


def dense_tpv(model: nn.Module, batch: Any, perturbation: Perturbation, forward: Forward | None = None) -> dict[str, float]:
    """First-order TPV by brute force: layer → value and "total", or only "total" for a fixed displacement.

    Args:
        model, batch, forward: as in :func:`tpv.estimate`, with a single batch.
        perturbation: one with variances, or a deterministic one.

    Example:
        >>> import torch, tpv, tpv.testing
        >>> model = torch.nn.Linear(3, 2).double()
        >>> round(tpv.testing.dense_tpv(model, torch.ones(5, 3).double(), tpv.Isotropic(0.1))["total"], 6)
        0.08
    """
    weights = Weights(model)
    jacobian = dense_jacobian(model, batch, forward)
    if perturbation.deterministic:
        delta = displacement(perturbation, weights, _seeded(0))
        moved = torch.stack([(jacobian[n] * d).flatten(2).sum(2) for n, d in delta.items()]).sum(0)
        return {"total": moved.square().sum(1).mean().item()}
    variance = diagonal(perturbation, weights)
    assert variance is not None, "dense_tpv needs a perturbation with variances, or a deterministic one"
    layers: dict[str, float] = {}
    for name, c in variance.items():
        value = (jacobian[name].square() * c).flatten(1).sum(1).mean().item()
        layers[layer_of(name)] = layers.get(layer_of(name), 0.0) + value
    return {**layers, "total": sum(layers.values())}


@contextmanager
def assert_unchanged(model: nn.Module) -> Iterator[None]:
    """Assert, also after an exception, that the block left the model and the global generator bit for bit as they were.

    Compared: parameters and buffers (identity and bits), ``.grad``, ``requires_grad``, ``training`` flags,
    the number of hooks, and torch's global random state.

    Raises:
        AssertionError: naming the first difference.

    Example:
        >>> import torch, tpv, tpv.testing
        >>> model = torch.nn.Linear(3, 2)
        >>> with tpv.testing.assert_unchanged(model):
        ...     result = tpv.estimate(model, torch.ones(5, 3), tpv.Isotropic(0.1))
    """
    before = _fingerprint(model)
    try:
        yield
    finally:
        after = _fingerprint(model)
        for key in before.keys() | after.keys():
            assert key in before, f"{key} has appeared"
            assert key in after, f"{key} is gone"
            assert _same(before[key], after[key]), f"{key} has changed"


def _fingerprint(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"global random state": torch.get_rng_state()}
    for name, module in model.named_modules():
        found[f"{name}.training"] = module.training
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            found[f"{name}.{kind}"] = list(getattr(module, kind))
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        grad = None if tensor.grad is None else tensor.grad.clone()
        found[name] = (id(tensor), tensor.requires_grad, tensor.detach().clone(), grad)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.ndim and tensor.numel() else tensor.reshape(-1).view(torch.uint8)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
