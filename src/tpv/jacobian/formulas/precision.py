"""In which precision formulas multiply: that of what the model multiplied, summed in float32 or wider."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """Half precision as float32, where squares neither overflow nor vanish; other dtypes as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def products(a: Tensor, b: Tensor) -> Tensor:
    """(B, M, N) batched matrix products: half precision is multiplied as it is where the device sums it in
    float32, else as float32. Any other dtype follows torch's own switches, such as TF32's.
    """
    if a.dtype != b.dtype:
        a, b = widened(a), widened(b)
    if widened(a) is a:
        return torch.bmm(a, b)
    if a.is_cuda and _sums_in_float32(a.device, a.dtype):
        summed: Tensor = torch.ops.aten.bmm.dtype(a, b, torch.float32)
        return summed
    return torch.bmm(a.float(), b.float())


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has products of this half precision with float32 results there (torch ≥ 2.8, CUDA)."""
    ones = torch.ones(1, 16, 16, device=device, dtype=dtype)
    try:
        return bool(torch.ops.aten.bmm.dtype(ones, ones, torch.float32).dtype == torch.float32)
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return False
