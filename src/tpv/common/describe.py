"""Arguments as text that says everything that could change a number, and nothing that changes by itself."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tpv.common.fingerprint import digest, weights_digest


def told(value: object) -> str:
    """Text for a fingerprint: fields and attributes with their values, functions and classes of the user's
    with a hash of their file.

    Example:
        >>> from tpv import Isotropic
        >>> told(("macs=0.5", Isotropic(0.1)))
        "('macs=0.5', tpv.perturbations.isotropic.Isotropic(std=0.1, params=None))"
    """
    return _told(value, ())


def _told(value: object, above: tuple[int, ...]) -> str:
    if id(value) in above:
        return "…"
    above = (*above, id(value))
    if isinstance(value, Tensor | nn.Module):
        return digest(value) if isinstance(value, Tensor) else weights_digest(value)
    if isinstance(value, Mapping):
        return f"({', '.join(f'{_told(key, above)}: {_told(item, above)}' for key, item in value.items())})"
    if isinstance(value, tuple | list):
        return f"({', '.join(_told(item, above) for item in value)})"
    if isinstance(value, types.FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        given = _told((value.__defaults__, value.__kwdefaults__, inside), above)
        return (
            f"{value.__module__}.{value.__qualname__}{_source(value)} {_instructions(value.__code__)} {given}"
        )
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{_source(value)}"
    if isinstance(value, types.MethodType | functools.partial):
        parts = (
            (value.__func__, value.__self__)
            if isinstance(value, types.MethodType)
            else (value.func, value.args, value.keywords)
        )
        return f"{type(value).__name__}{_told(parts, above)}"
    return _fields(value, above)


def _instructions(code: types.CodeType) -> str:
    """A hash of what a function does, apart from what it calls."""
    constants = [_constant(item) for item in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def _constant(value: object) -> str:
    if isinstance(value, types.CodeType):
        return _instructions(value)
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _fields(value: object, above: tuple[int, ...]) -> str:
    """An object of any other kind."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    else:
        fields = dict(getattr(value, "__dict__", {}))
    if not fields and type(value).__repr__ is not object.__repr__:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return f"{_told(type(value), above)}({', '.join(f'{name}={_told(item, above)}' for name, item in fields.items())})"


def _source(thing: object) -> str:
    """A hash of the file that defines it, where that is the user's."""
    module = inspect.getmodule(thing)
    file = getattr(module, "__file__", None)
    if (
        module is None
        or file is None
        or not Path(file).is_file()
        or module.__name__.partition(".")[0] in ("tpv", "torch", "torch_pruning")
    ):
        return ""
    return f" {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"
