"""Telling whether weights or data are the same as before."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator

from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """A hash of every parameter and buffer, by name, and of the types of modules and the numbers and texts
    that they hold.
    """
    state = dict(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    )
    return digest(*state.values(), names=(*state, *_settings(model)))


def _settings(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield f"{name}: {type(module).__qualname__}"
        for key, value in vars(module).items():
            if all(
                isinstance(part, bool | int | float | str)
                for part in (value if isinstance(value, tuple) else [value])
            ):
                yield f"{name}.{key}={value!r}"


def digest(*tensors: Tensor, names: tuple[str, ...] = ()) -> str:
    """A hash of dtypes, shapes and contents."""
    found = hashlib.sha256(repr(names).encode())
    for tensor in tensors:
        here = tensor.detach().cpu().contiguous()
        found.update(f"{here.dtype}{tuple(here.shape)}".encode())
        if here.numel():
            found.update((ctypes.c_char * (here.numel() * here.itemsize)).from_address(here.data_ptr()))
    return found.hexdigest()
