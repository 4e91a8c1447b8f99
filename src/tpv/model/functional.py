"""Calling a module with some of its parameters and buffers replaced."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from tpv.model.process_state import differentiable_kernels


def call_with(
    module: nn.Module,
    replacements: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """``torch.func.functional_call``, also for modules that are registered under several names.

    ``functional_call`` replaces the tensors of such a module once under each name, and takes the replacement
    for the original when it restores them (torch 2.13). Here each place that holds a tensor is named once; a
    tensor that several modules share is replaced in all of them.

    Args:
        module: what to call.
        replacements: name, as in ``named_parameters`` or ``named_buffers``, → tensor.
        args, kwargs: arguments of the call.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> twice = nn.Sequential(layer, layer)
        >>> call_with(twice, {"0.weight": torch.full((1, 1), 3.0)}, (torch.ones(1, 1),))
        tensor([[9.]])
        >>> isinstance(layer.weight, nn.Parameter)
        True
    """
    places = _places(module)
    replaced = {place: tensor for name, tensor in replacements.items() for place in places[name]}
    with differentiable_kernels(module):
        return functional_call(module, replaced, args, kwargs, tie_weights=False)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """First name of each parameter and buffer → the names of all places that hold it, each module once."""
    by_tensor: dict[int, list[str]] = {}
    for prefix, owner in module.named_modules():
        for name, tensor in itertools.chain(owner._parameters.items(), owner._buffers.items()):
            if tensor is not None:
                by_tensor.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {names[0]: names for names in by_tensor.values()}
