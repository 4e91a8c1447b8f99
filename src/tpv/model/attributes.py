"""Plain attributes of modules, remembered and restored between forward passes."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn


class Attributes:
    """Plain attributes of the modules of a twin, down to the entries of containers and the values of tensors.

    Among them are states, and caches of tensors computed from weights: LeViT fills such a cache in its first
    evaluation pass, and gradients would end there in the next one.
    """

    def __init__(self, module: nn.Module) -> None:
        self._before = [
            (vars(m), {key: value for key, value in vars(m).items() if key not in _OWN})
            for m in module.modules()
        ]
        self._entries: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        for _, attributes in self._before:
            self._remember(list(attributes.values()))

    def _remember(self, values: list[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor) and not value.requires_grad:
                self._tensors.append((value, value.detach().clone()))
            elif type(value) in _CONTAINERS:
                self._entries.append((value, copy.copy(value)))
                self._remember(list(value.values() if isinstance(value, dict) else value))

    def restore(self) -> None:
        """Restore every attribute, entry and value."""
        for now, before in self._before:
            now.update(before)
        for container, entries in self._entries:
            if _differ(container, entries):
                container.clear()
                container.update(entries) if isinstance(container, dict | set) else container.extend(entries)
        for tensor, values in self._tensors:
            _restore_values(tensor, values)


_OWN = vars(nn.Module()).keys()
_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@torch.no_grad()
def _restore_values(tensor: Tensor, before: Tensor) -> None:
    """The values that a tensor had, without the history that writing to it has left."""
    if tensor.grad_fn is not None:
        tensor.detach_()
    if tensor.shape != before.shape:
        tensor.data = before.clone()
    elif not torch.equal(tensor, before):
        tensor.copy_(before)


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) != list(b) or _differ(list(a.values()), list(b.values()))
    return len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=True))
