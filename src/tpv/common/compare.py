"""Equality of nested values that hold tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def same_content(a: object, b: object) -> bool:
    """Equality that looks into containers and compares tensors by dtype, shape and contents.

    Example:
        >>> same_content({"x": [torch.ones(2)]}, {"x": [torch.ones(2)]}), same_content([torch.ones(2)], [1.0])
        (True, False)
    """
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.to(b.device), b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_content(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_content, a, b))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b)
