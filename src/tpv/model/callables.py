"""How a copier copies functions, methods and weak references, so that they lead to the twin."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator
from typing import Any

from tpv.model.copier import Copier, Handler, is_atom


def _function(original: types.FunctionType, copy: Copier) -> Any:
    if (written := vars(original).get("_torchdynamo_orig_callable")) is not None:
        return copy.note(original, copy(written))  # torch.compile wraps what runs as written here
    names = _global_names(original, copy)
    if names is original.__globals__ and all(map(is_atom, held_by(original))):
        return copy.note(original, original)
    cells = None if original.__closure__ is None else tuple(map(_cell_to_fill, original.__closure__))
    if original.__closure__ is not None and cells is not None:
        cells = tuple(copy.note(cell, empty) for cell, empty in zip(original.__closure__, cells, strict=True))
    copied = copy.note(
        original,
        types.FunctionType(original.__code__, names, original.__name__, original.__defaults__, cells),
    )
    copied.__defaults__, copied.__kwdefaults__ = copy(original.__defaults__), copy(original.__kwdefaults__)
    copied.__qualname__, copied.__module__, copied.__doc__ = (
        original.__qualname__,
        original.__module__,
        original.__doc__,
    )
    for cell, filled in zip(original.__closure__ or (), cells or (), strict=True):
        _fill(cell, filled, copy)
    vars(copied).update({name: copy(value) for name, value in vars(original).items()})
    return copied


def held_by(function: types.FunctionType) -> Iterator[Any]:
    """What a function refers to, global names aside."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()


def global_values(function: types.FunctionType, copy: Copier) -> list[Any]:
    """The modules and parameters of the model among the global names that a function uses, and the functions
    beside it that may use some.
    """
    names = function.__globals__
    if not any(id(value) in copy.targets for value in list(names.values())):
        return []
    used = (names[name] for name in _used_names(function.__code__) if name in names)
    return [
        value
        for value in used
        if id(value) in copy.targets
        or (isinstance(value, types.FunctionType) and value.__globals__ is names and value is not function)
    ]


def _used_names(code: types.CodeType) -> set[str]:
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {*code.co_names}.union(*map(_used_names, nested))


def _leads_to_model(function: types.FunctionType, copy: Copier, seen: set[int]) -> bool:
    seen.add(id(function))
    return any(
        id(value) in copy.targets or (id(value) not in seen and _leads_to_model(value, copy, seen))
        for value in global_values(function, copy)
    )


class _GlobalNames(dict):  # type: ignore[type-arg]
    """A module's global names, with the twin in the model's place."""

    def __init__(self, names: dict[str, Any], copy: Copier) -> None:
        super().__init__()
        self._names, self._copy = names, copy

    def __missing__(self, name: str) -> Any:
        value = self._names[name]
        follows = id(value) in self._copy.targets or isinstance(value, types.FunctionType)
        return self._copy(value) if follows else value


def _global_names(function: types.FunctionType, copy: Copier) -> dict[str, Any]:
    if not _leads_to_model(function, copy, set()):
        return function.__globals__
    if not copy.known(function.__globals__):
        copy.note(function.__globals__, _GlobalNames(function.__globals__, copy))
    return copy(function.__globals__)  # type: ignore[no-any-return]


def _cell_to_fill(_: Any) -> Any:
    return types.CellType()


def _cell(original: Any, copy: Copier) -> Any:
    copied = copy.note(original, types.CellType())
    _fill(original, copied, copy)
    return copied


def _fill(original: Any, copied: Any, copy: Copier) -> None:
    try:
        value = original.cell_contents
    except ValueError:
        return
    copied.cell_contents = copy(value)


def _method(original: types.MethodType, copy: Copier) -> Any:
    owner = original.__self__
    inherited = getattr(type(owner), original.__name__, None) is original.__func__
    function = original.__func__ if inherited else copy(original.__func__)
    copied = copy(owner)
    if copied is owner and function is original.__func__:
        return original
    return copy.note(original, types.MethodType(function, copied))


def _builtin_method(original: Any, copy: Copier) -> Any:
    owner = original.__self__
    copied = copy(owner)
    return original if copied is owner else copy.note(original, getattr(copied, original.__name__))


def _partial(original: functools.partial[Any], copy: Copier) -> Any:
    held = original.func, original.args, original.keywords
    function, args, keywords = map(copy, held)
    kind = type(original)
    return copy.attributes(original, copy.note(original, kind.__new__(kind, function, *args, **keywords)))


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a copy that nothing else may hold."""

    target: Any

    def __deepcopy__(self, memo: Any) -> _Reference:
        return self


def _reference(original: weakref.ref[Any], copy: Copier) -> Any:
    target = original()
    copied = copy(target)
    if copied is target:
        return original
    if isinstance(original, weakref.WeakMethod):
        return copy.note(original, weakref.WeakMethod(copied))
    reference = copy.note(original, _Reference(copied))
    reference.target = copied
    return reference


def _proxy(original: Any, copy: Copier) -> Any:
    try:
        target = original.__repr__.__self__
    except ReferenceError:
        return original
    return copy.note(original, weakref.proxy(copy(target))) if id(target) in copy.targets else original


CALLABLES: dict[type, Handler] = {
    types.FunctionType: _function,
    types.CellType: _cell,
    types.MethodType: _method,
    types.BuiltinMethodType: _builtin_method,
    types.MethodWrapperType: _builtin_method,
    functools.partial: _partial,
    weakref.ref: _reference,
    weakref.ProxyType: _proxy,
    weakref.CallableProxyType: _proxy,
}
