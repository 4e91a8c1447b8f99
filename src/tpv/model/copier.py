"""A recursive copy of whatever a model holds, with the original's weights under it."""

from __future__ import annotations

import copy as shallow
import copyreg
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from tpv.model.storages import LARGE

_WITHOUT_ATTRIBUTES = (dict, OrderedDict, defaultdict, list, set, deque, tuple)
Handler = Callable[[Any, "Copier"], Any]
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_SHARED = (
    "threading", "_thread", "concurrent", "multiprocessing", "queue", "_queue", "asyncio", "logging", "io",
    "_io", "socket", "subprocess", "tempfile", "contextvars", "enum", "torch.optim", "torch.utils.data",
    "torch.utils.tensorboard", "torch.distributed", "torch.multiprocessing", "torch._dynamo", "torch.fx",
    "torch.jit", "torch.profiler", "torch.cuda", "torch._C", "tqdm", "wandb",
)  # fmt: skip
"""Modules whose objects cannot or should not be copied: locks, files, pools, loggers, optimizers, loaders."""


class Copier:
    """Copies objects, each once, so that the copies refer to each other as the originals do.

    ``copy.deepcopy`` does not follow closures, bound methods, partial functions and weak references, so that
    its copy runs the original in places; and it copies weights.

    Args:
        handlers: type → how its instances are copied; of any other object, the attributes are.
    """

    def __init__(self, handlers: Mapping[type, Handler]) -> None:
        self.only: set[int] | None = None
        self.targets: dict[int, Any] = {}
        self._handlers, self._by_type = handlers, dict[type, Handler]()
        self._copies: dict[int, tuple[Any, Any]] = {}

    def expect(self, targets: Iterable[Any]) -> None:
        """Modules and parameters: their ``id`` may be the key of a dict, and they may be global names."""
        self.targets |= {id(target): target for target in targets}

    def __call__(self, original: Any) -> Any:
        """The copy of an object, or itself where nothing in it needs one."""
        if type(original) in _ATOMS or isinstance(original, type):
            return original
        if (pair := self._copies.get(id(original))) is not None:
            return pair[1]
        if self.only is not None and id(original) not in self.only:
            return original
        return self._handler(type(original))(original, self)

    def _handler(self, kind: type) -> Handler:
        if kind not in self._by_type:
            bases = (self._handlers[base] for base in kind.__mro__ if base in self._handlers)
            self._by_type[kind] = next(bases, _any_object)
        return self._by_type[kind]

    def note(self, original: Any, copied: Any) -> Any:
        """Remember a copy before what it holds is copied, and keep the original alive: its id is its name."""
        return self._copies.setdefault(id(original), (original, copied))[1]

    def known(self, original: Any) -> bool:
        """Whether there is a copy."""
        return id(original) in self._copies

    @property
    def changed(self) -> set[int]:
        """The ids of all objects that are not their own copies."""
        return {key for key, (original, copied) in self._copies.items() if original is not copied}

    def key(self, key: Any) -> Any:
        """The copy of a key of a dict: also where it is the ``id`` of a module or a parameter."""
        return id(self(self.targets[key])) if type(key) is int and key in self.targets else self(key)

    def attributes(self, original: Any, copied: Any) -> Any:
        """Fill an object with copies of the original's attributes."""
        if type(original) in _WITHOUT_ATTRIBUTES:
            return copied
        if isinstance(own := getattr(original, "__dict__", None), dict):
            filled = self.note(own, vars(copied))
            filled.update({name: self(value) for name, value in own.items()})
        for name in copyreg._slotnames(type(original)):  # type: ignore[attr-defined]
            if hasattr(original, name):
                object.__setattr__(copied, name, self(getattr(original, name)))
        return copied


def is_atom(value: Any) -> bool:
    """Whether nothing in it can need a copy."""
    return type(value) in _ATOMS or isinstance(value, type)


def _any_object(original: Any, copy: Copier) -> Any:
    kind = type(original)
    if _is_shared(kind) or _is_sentinel(original):
        return copy.note(original, original)
    if kind.__module__.startswith("numpy"):
        return copy.note(original, _of_numpy(original))
    try:
        copied = object.__new__(kind)
    except TypeError:  # implemented in C
        return copy.note(original, original)
    return copy.attributes(original, copy.note(original, copied))


def _is_shared(kind: type) -> bool:
    prefix = f"{kind.__module__}."
    return prefix.startswith(_SHARED_PREFIXES) or hasattr(kind, "__del__") or issubclass(kind, BaseException)


def _is_sentinel(original: Any) -> bool:
    """Whether it has no state and a name in its module, such as a marker that code compares by ``is``."""
    if getattr(original, "__dict__", None) or copyreg._slotnames(type(original)):  # type: ignore[attr-defined]
        return False
    names = vars(sys.modules.get(type(original).__module__, types)).values()
    return type(original) is object or any(value is original for value in list(names))


_SHARED_PREFIXES = tuple(f"{name}." for name in _SHARED)


def _of_numpy(original: Any) -> Any:
    """The copy of an array or a random generator; of an array beyond 1 MiB, a read-only view."""
    numpy: Any = sys.modules["numpy"]
    if not isinstance(original, numpy.ndarray) or original.nbytes <= LARGE:
        return shallow.deepcopy(original)
    view = original.view()
    view.flags.writeable = False
    return view
