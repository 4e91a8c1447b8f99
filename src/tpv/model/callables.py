"""How a copier copies functions, methods and weak references, so that they lead to the twin."""

from __future__ import annotations

import functools
import types
import weakref
from typing import Any

from tpv.model.copier import Copier, Handler, is_atom


def _function(original: types.FunctionType, copy: Copier) -> Any:
    if (written := vars(original).get("_torchdynamo_orig_callable")) is not None:
        return copy.note(original, copy(written))  # torch.compile wraps what runs as written here
    before = parts(original)
    names, cells, *others = (_global_names(original, copy), *map(copy, before[1:]))
    if copy.known(original):  # it refers to itself
        return copy(original)
    if all(a is b for a, b in zip(before, (names, cells, *others), strict=True)):
        return copy.note(original, original)
    copied = copy.note(original, types.FunctionType(original.__code__, names, original.__name__, None, cells))
    copied.__defaults__ = others[0]
    copied.__kwdefaults__ = others[1] or original.__kwdefaults__
    vars(copied).update(others[2] or vars(original))
    for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
        setattr(copied, name, getattr(original, name))
    return copied


def parts(function: types.FunctionType) -> tuple[Any, ...]:
    """What a function refers to: global names, closure, defaults and attributes, None where all are atoms."""
    keywords, attributes = map(_unless_atoms, (function.__kwdefaults__, vars(function)))
    return function.__globals__, function.__closure__, function.__defaults__, keywords, attributes


def _unless_atoms(values: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None or all(map(is_atom, values.values())) else values


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


def _cell(original: Any, copy: Copier) -> Any:
    try:
        value = original.cell_contents
    except ValueError:  # empty
        value = None
    if isinstance(value, type):  # that of super(), say
        return original
    copied = copy.note(original, types.CellType())
    copied.cell_contents = copy(value)
    return copied


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
    function, args, keywords = map(copy, (original.func, original.args, original.keywords))
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
