"""How a copier copies containers and other objects of the standard library."""

from __future__ import annotations

import array
import copy as shallow
import enum
import itertools
import random
import re
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import Any

from tpv.model.copier import Copier, Handler


def _dict(original: dict[Any, Any], copy: Copier) -> Any:
    base: Any = OrderedDict if isinstance(original, OrderedDict) else dict
    copied = copy.note(original, base.__new__(type(original)))
    if isinstance(original, defaultdict):
        copied.default_factory = copy(original.default_factory)
    for key, value in base.items(original):
        base.__setitem__(copied, copy.key(key), copy(value))
    return copy.attributes(original, copied)


def _list(original: list[Any], copy: Copier) -> Any:
    copied = copy.note(original, list.__new__(type(original)))
    list.extend(copied, map(copy, list.__iter__(original)))
    return copy.attributes(original, copied)


def _set(original: set[Any], copy: Copier) -> Any:
    copied = copy.note(original, set.__new__(type(original)))
    set.update(copied, map(copy.key, set.__iter__(original)))
    return copy.attributes(original, copied)


def _deque(original: deque[Any], copy: Copier) -> Any:
    copied = copy.note(original, deque.__new__(type(original)))
    deque.__init__(copied, (), original.maxlen)
    deque.extend(copied, map(copy, deque.__iter__(original)))
    return copy.attributes(original, copied)


def _tuple(original: tuple[Any, ...], copy: Copier) -> Any:
    copied = tuple(map(copy, tuple.__iter__(original)))
    if copy.known(original) or all(map(_identical, original, copied)):
        return copy.note(original, original)
    try:
        made = tuple.__new__(type(original), copied)
    except TypeError:  # a structure of C, such as the result of torch.max
        made = type(original)(copied)
    return copy.attributes(original, copy.note(original, made))


def _frozenset(original: frozenset[Any], copy: Copier) -> Any:
    copied = frozenset.__new__(type(original), map(copy.key, original))
    return copy.note(original, original if copied == original else copied)


def _identical(a: Any, b: Any) -> bool:
    return a is b


def _namespace(original: types.SimpleNamespace, copy: Copier) -> Any:
    return copy.attributes(original, copy.note(original, type(original).__new__(type(original))))


def _random(original: random.Random, copy: Copier) -> Any:
    if isinstance(original, random.SystemRandom):  # which has no state
        return copy.note(original, original)
    copied = copy.note(original, random.Random.__new__(type(original)))
    random.Random.setstate(copied, random.Random.getstate(original))
    return copy.attributes(original, copied)


def _weak_mapping(original: Any, copy: Copier) -> Any:
    base: Any = next(kind for kind in _WEAK if isinstance(original, kind))
    copied = copy.note(original, _empty(base, original, copy))
    for key, value in list(base.items(original)):
        base.__setitem__(copied, copy.key(key), copy(value))
    return copied


def _weak_set(original: Any, copy: Copier) -> Any:
    copied = copy.note(original, _empty(weakref.WeakSet, original, copy))
    for member in list(weakref.WeakSet.__iter__(original)):
        weakref.WeakSet.add(copied, copy(member))
    return copied


def _empty(base: Any, original: Any, copy: Copier) -> Any:
    """One without entries, with copies of what a subclass adds."""
    copied = base.__new__(type(original))
    base.__init__(copied)
    added = {name: copy(value) for name, value in vars(original).items() if name not in vars(copied)}
    vars(copied).update(added)
    return copied


def _count(original: Any, copy: Copier) -> Any:
    """Made again from its repr: later versions of Python cannot copy iterators."""
    values = _COUNT.fullmatch(repr(original))
    return copy.note(
        original, itertools.count(*map(int, filter(None, values.groups()))) if values else original
    )


_COUNT = re.compile(r"count\((-?\d+)(?:, (-?\d+))?\)")
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)


def _itself(original: Any, copy: Copier) -> Any:
    return original


CONTAINERS: dict[type, Handler] = {
    dict: _dict,
    list: _list,
    set: _set,
    deque: _deque,
    tuple: _tuple,
    frozenset: _frozenset,
    bytearray: lambda original, copy: copy.note(original, type(original)(original)),
    types.SimpleNamespace: _namespace,
    array.array: lambda original, copy: copy.note(original, shallow.copy(original)),
    itertools.count: _count,
    random.Random: _random,
    weakref.WeakKeyDictionary: _weak_mapping,
    weakref.WeakValueDictionary: _weak_mapping,
    weakref.WeakSet: _weak_set,
    types.ModuleType: _itself,
    enum.Enum: _itself,
    str: _itself,
    int: _itself,
    float: _itself,
    bytes: _itself,
}
