"""The form of a batch, from which a batch of zeros can be built again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError


def structure(batch: Any) -> Any:
    """Shapes, dtypes and nesting of a batch as plain JSON values.

    Args:
        batch: nested tensors, tuples, lists, mappings, numbers, texts and None.

    Raises:
        TPVError: if it holds anything else.

    Example:
        >>> structure((torch.ones(2, 3), [True]))
        {'tuple': [{'tensor': [2, 3], 'dtype': 'float32'}, {'list': [{'value': True}]}]}
    """
    if isinstance(batch, Tensor):
        return {"tensor": list(batch.shape), "dtype": str(batch.dtype).removeprefix("torch.")}
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        return {"dict": {key: structure(value) for key, value in batch.items()}}
    if isinstance(batch, tuple | list):
        return {"list" if isinstance(batch, list) else "tuple": [structure(value) for value in batch]}
    if batch is None or isinstance(batch, bool | int | float | str):
        return {"value": batch}
    raise TPVError(
        f"the form of a batch with a {type(batch).__name__} in it cannot be kept: give tensors, tuples, "
        "lists or mappings."
    )


def zeros(found: Any, device: torch.device) -> Any:
    """A batch of that form, of zeros.

    Args:
        found: from :func:`structure`.
        device: where to.

    Raises:
        ValueError, KeyError, TypeError or AttributeError: if it is none.

    Example:
        >>> zeros(structure({"x": torch.ones(1, 2, dtype=torch.int64)}), torch.device("cpu"))
        {'x': tensor([[0, 0]])}
    """
    if "tensor" in found:
        dtype = getattr(torch, found["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{found['dtype']!r} is no dtype")
        return torch.zeros(found["tensor"], dtype=dtype, device=device)
    if "dict" in found:
        return {key: zeros(value, device) for key, value in found["dict"].items()}
    if "tuple" in found:
        return tuple(zeros(value, device) for value in found["tuple"])
    return [zeros(value, device) for value in found["list"]] if "list" in found else found["value"]
