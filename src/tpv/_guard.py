"""The promise that a model is never left changed."""

from __future__ import annotations

import copy
import random
import sys
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
    generators = _GlobalRandomState()
    try:
        with Attributes(model, new=True):
            yield
    finally:
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
            if buffer is not None and before is not None and not torch.equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)


class Attributes:
    """A context that puts back what modules keep as plain attributes, down to the entries of dicts and lists.

    Among them are states, and caches of tensors computed from weights: LeViT fills such a cache in its first
    evaluation pass, and gradients would end there in the next one.

    Args:
        new: whether attributes that have appeared go too.
    """

    def __init__(self, module: nn.Module, *, new: bool = False) -> None:
        self._new = new
        self._kept = [(vars(m), {key: value for key, value in vars(m).items() if key not in _OWN}) for m in module.modules()]
        containers = [value for _, before in self._kept for value in before.values() if type(value) in (dict, list)]
        self._entries = [(container, copy.copy(container)) for container in containers]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for now, before in self._kept:
            if self._new:
                for key in now.keys() - before.keys() - _OWN:
                    del now[key]
            now.update(before)
        for container, entries in self._entries:
            if _differ(container, entries):
                container.clear()
                container.update(entries) if isinstance(container, dict) else container.extend(entries)


_OWN = vars(nn.Module()).keys()


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() != b.keys() or _differ(list(a.values()), list(b.values()))
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
