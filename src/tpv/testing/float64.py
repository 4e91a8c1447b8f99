"""Running a model entirely in float64, whatever it casts to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float64Everywhere(TorchFunctionMode):
    """Every float32 that a model asks for, by cast, argument or default, is a float64.

    Many models compute norms, attention weights or rotary angles in float32 whatever their weights are, and
    gradients then agree to 1e-7 only. It keeps torch from fused inference paths.
    """

    def __enter__(self) -> Float64Everywhere:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(self._default)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        return func(*map(_widened, args), **{key: _widened(value) for key, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
