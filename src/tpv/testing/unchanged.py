"""The promise that a model is never left changed, as an assertion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def assert_unchanged(model: nn.Module) -> Iterator[None]:
    """Assert, also after an exception, that the block left the model and the global generator bit for bit as
    they were.

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
    contents: dict[str, Any] = {"global random state": torch.get_rng_state()}
    for name, module in model.named_modules():
        contents[f"{name}.training"] = module.training
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            contents[f"{name}.{kind}"] = list(getattr(module, kind))
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        grad = None if tensor.grad is None else tensor.grad.clone()
        contents[name] = (id(tensor), tensor.requires_grad, tensor.detach().clone(), grad)
    return contents


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _bits(tensor: Tensor) -> Tensor:
    return (
        tensor.contiguous().view(torch.uint8)
        if tensor.ndim and tensor.numel()
        else tensor.reshape(-1).view(torch.uint8)
    )
