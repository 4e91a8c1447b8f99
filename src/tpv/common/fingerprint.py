"""Telling whether settings, weights, functions or data are the same as before."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


def fingerprint(*values: object) -> str:
    """A hash of everything that these values hold, the same in another process.

    Tensors, arrays and models count by their content; objects by the qualified name of their class and their
    fields; functions and classes by their qualified name, not by their code.

    Example:
        >>> import tpv
        >>> fingerprint(tpv.Quantization(bits=4)) == fingerprint(tpv.Quantization(bits=4))
        True
        >>> fingerprint(tpv.Quantization(bits=4)) == fingerprint(tpv.Quantization(bits=3))
        False
    """
    running = RunningFingerprint()
    running.update(*values)
    return running.hexdigest()


class RunningFingerprint:
    """A :func:`fingerprint` of values that come one after the other, such as the batches of data.

    Example:
        >>> running = RunningFingerprint()
        >>> total = sum(running.reading([1, 2, 3]))
        >>> total, running.hexdigest() == fingerprint(1, 2, 3)
        (6, True)
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, *values: object) -> None:
        """Add values."""
        for value in values:
            self._add(value, ())

    def reading(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each added as it is read."""
        for batch in batches:
            self.update(batch)
            yield batch

    def hexdigest(self) -> str:
        """Of everything so far."""
        return self._hash.hexdigest()

    def _add(self, value: object, outer: tuple[int, ...]) -> None:
        if id(value) in outer:
            return self._text("(itself)")
        if isinstance(value, Tensor):
            return self._text(digest(value))
        if isinstance(value, nn.Module):
            return self._text(weights_digest(value))
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return self._text(f"{value.__module__}.{value.__qualname__}")
        parts = _parts(value)
        if parts is None:
            return self._text(f"{type(value).__name__} {re.sub(' at 0x[0-9a-f]+', '', repr(value))}")
        self._text(f"{type(value).__module__}.{type(value).__qualname__} {len(parts)}")
        for part in parts:
            self._add(part, (*outer, id(value)))
        return None

    def _text(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(encoded).to_bytes(8, "little") + encoded)


def _parts(value: Any) -> list[object] | None:
    """What an object consists of; None for one that its text describes."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return None
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, AbstractSet):
        return [*sorted(map(repr, value))]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if hasattr(value, "__array_interface__"):
        return [
            str(value.dtype),
            tuple(value.shape),
            value.tolist() if value.dtype == object else value.tobytes(),
        ]
    fields = (
        [f.name for f in dataclasses.fields(value)]
        if dataclasses.is_dataclass(value)
        else vars(value)
        if hasattr(value, "__dict__")
        else []
    )
    return [part for name in fields if hasattr(value, name) for part in (name, getattr(value, name))] or None


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
    running = hashlib.sha256(repr(names).encode())
    for tensor in tensors:
        dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        here = dense.resolve_conj().resolve_neg().cpu().contiguous()
        running.update(f"{here.dtype}{tuple(here.shape)}".encode())
        if here.numel():
            running.update((ctypes.c_char * (here.numel() * here.itemsize)).from_address(here.data_ptr()))
    return running.hexdigest()
