"""The same model in a wider dtype: float64 for proofs, and for differences that rounding would drown."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.model.batches import map_tensors
from tpv.model.linearization import Linearization
from tpv.model.twin import make_twin

_MOST_BYTES = 2**33
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


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
        if _get_current_function_mode() is self:  # not after an interrupt inside of __torch_function__
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        return func(*map(_widened, args), **{key: _widened(value) for key, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def in_dtype(lin: Linearization, dtype: torch.dtype) -> Linearization | None:
    """The same model with all its floating-point tensors in a wider dtype; None beyond 8 GiB, or if it
    cannot be copied.

    Args:
        lin: the model at w*; it is the answer itself where all its weights have this dtype.
        dtype: float32 or float64.
    """
    if all(w.dtype == dtype for w in lin.weights.values()):
        return lin
    if sum(p.numel() * dtype.itemsize for p in lin.model.parameters()) > _MOST_BYTES:
        return None
    try:
        twin = make_twin(lin.model)
        twin.model._apply(lambda t: cast(t, dtype))
        for module in twin.model.modules():
            plain = {k: v for k, v in vars(module).items() if k not in _OWN}
            vars(module).update({k: cast(v, dtype) for k, v in plain.items()})
        forward = twin.remapped(lin.forward) if lin.custom_forward else None
        return Linearization(twin.model, forward, lin.output)
    except (TPVError, RuntimeError, TypeError):
        return None


_OWN = vars(nn.Module()).keys()


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors and containers of them with narrower floating-point numbers in ``dtype``."""

    def widen(t: Tensor) -> Tensor:
        wanted = _COMPLEX[dtype] if t.is_complex() else dtype
        narrower = (t.is_floating_point() or t.is_complex()) and t.dtype.itemsize < wanted.itemsize
        return t.to(wanted) if narrower else t

    if isinstance(value, Tensor):
        return widen(value)
    plain = type(value) in (list, tuple, dict) and any(True for _ in value)
    return map_tensors(value, widen) if plain else value


def precise(lin: Linearization, few: Any) -> tuple[Linearization, Any, bool]:
    """The model, examples in float64, and True; or all as they are and False where it does not run so.

    They are for use inside :func:`everywhere`.
    """
    wide, same = in_dtype(lin, torch.float64), cast(few, torch.float64)
    exact = wide is not None and (wide is lin or _runs(wide, same))
    return (wide, same, True) if wide is not None and exact else (lin, few, False)


def everywhere(exact: bool) -> AbstractContextManager[object]:
    """:class:`Float64Everywhere`, where asked for."""
    return Float64Everywhere() if exact else nullcontext()


def _runs(lin: Linearization, few: Any) -> bool:
    try:
        with torch.no_grad(), Float64Everywhere():
            return bool(lin(few).dtype == torch.float64)
    except Exception as error:  # whatever the user's model raises on float64
        if is_out_of_memory(error):
            raise
        return False
