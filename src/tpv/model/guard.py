"""The promise that a model is never left changed."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, flags and the global random state on exit, whatever happens inside.

    Nothing here writes to parameters; their identity is restored in case an interrupt caught the model
    while ``functional_call`` had others in their place. Buffers are copied (a stateful module may
    update them in evaluation mode too), and so are the lists of forward hooks and plain attributes.
    """
    slots = [_Slots(module) for module in model.modules()]
    attributes, generators = Attributes(model), _GlobalRandomState()
    try:
        yield
    finally:
        attributes.restore(new=True)
        for slot in slots:
            slot.restore()
        generators.restore()


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


class _Slots:
    """What one module holds."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._training = module.training
        self._parameters = dict(module._parameters)
        self._requires_grad = {k: p.requires_grad for k, p in self._parameters.items() if p is not None}
        self._hooks = {key: dict(hooks) for key, hooks in vars(module).items() if key in _HOOKS}
        self._buffers = {key: (buffer, _copy(buffer)) for key, buffer in module._buffers.items()}

    def restore(self) -> None:
        module = self._module
        module.training = self._training
        for key, hooks in self._hooks.items():
            if vars(module)[key] != hooks:
                vars(module)[key].clear()
                vars(module)[key].update(hooks)
        for key, parameter in self._parameters.items():
            module._parameters[key] = parameter
            if parameter is not None and parameter.requires_grad != self._requires_grad[key]:
                parameter.requires_grad_(self._requires_grad[key])
        for key in module._buffers.keys() - self._buffers.keys():
            del module._buffers[key]
        for key, (buffer, before) in self._buffers.items():
            module._buffers[key] = buffer
            if buffer is not None and before is not None:
                put_back(buffer, before)


class Attributes:
    """What modules keep as plain attributes, down to the entries of containers and the values of tensors, to
    be put back.

    Among them are states, and caches of tensors computed from weights: LeViT fills such a cache in its first
    evaluation pass, and gradients would end there in the next one.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (vars(m), {key: value for key, value in vars(m).items() if key not in _OWN})
            for m in module.modules()
        ]
        self._entries: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        for _, before in self._kept:
            self._keep(list(before.values()))

    def _keep(self, values: list[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor) and not value.requires_grad:
                self._tensors.append((value, value.detach().clone()))
            elif type(value) in _CONTAINERS:
                self._entries.append((value, copy.copy(value)))
                self._keep(list(value.values() if isinstance(value, dict) else value))

    def restore(self, *, new: bool = False) -> None:
        """Put everything back; with ``new``, attributes that have appeared go too."""
        for now, before in self._kept:
            if new:
                for key in now.keys() - before.keys() - _OWN:
                    del now[key]
            now.update(before)
        for container, entries in self._entries:
            if _differ(container, entries):
                container.clear()
                container.update(entries) if isinstance(container, dict | set) else container.extend(entries)
        for tensor, values in self._tensors:
            put_back(tensor, values)


_OWN = vars(nn.Module()).keys()
_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@torch.no_grad()
def put_back(tensor: Tensor, before: Tensor) -> None:
    """The values that a tensor had, without the history that writing to it has left."""
    if tensor.grad_fn is not None:
        tensor.detach_()
    if not torch.equal(tensor, before):
        tensor.copy_(before)


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) != list(b) or _differ(list(a.values()), list(b.values()))
    return len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=True))


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.detach().clone()


class _GlobalRandomState:
    """The states of the global generators of Python, NumPy (if loaded) and torch."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy: Any = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
