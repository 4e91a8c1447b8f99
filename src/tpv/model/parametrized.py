"""Parametrized weights of a twin, made plain parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@torch.no_grad()
def with_plain_weights(twin: nn.Module) -> None:
    """Replace, in a twin, what a parametrization or the older hooks of weight norm and spectral norm compute
    by a parameter with its value.

    PyTorch's own ``remove_parametrizations`` deletes from the class that the twin shares with the model.
    """
    for module in twin.modules():
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, WeightNorm | SpectralNorm):
                _without_hook(module, key, hook)


def _without_hook(module: nn.Module, key: int, hook: Any) -> None:
    spectral = isinstance(hook, SpectralNorm)
    value: Tensor = hook.compute_weight(module, *([False] if spectral else [])).detach().clone()
    del module._forward_pre_hooks[key]
    for suffix in ("_orig", "_u", "_v") if spectral else ("_g", "_v"):
        delattr(module, hook.name + suffix)
    if hook.name in vars(module):
        delattr(module, hook.name)
    module.register_parameter(hook.name, nn.Parameter(value))
