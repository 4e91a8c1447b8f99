"""Which layer types have an analytic formula: one line each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tpv.jacobian.formulas.base import LayerCall
from tpv.jacobian.formulas.conv import ConvCall
from tpv.jacobian.formulas.embedding import EmbeddingCall
from tpv.jacobian.formulas.linear import LinearCall
from tpv.jacobian.formulas.norm import ChannelNormCall, LastNormCall
from tpv.jacobian.formulas.precision import widened
from tpv.model.types import TRANSPOSED_LINEAR, type_name

Formula = Callable[[Any, Tensor, int, int], LayerCall | None]
"""(module, input, number of examples, number of cotangents) ↦ the call, or None for an input of another
layout.
"""


def _linear(module: nn.Linear, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return LinearCall(module, x, n, passes) if x.ndim > 1 else None


def _transposed_linear(module: nn.Module, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return LinearCall(module, x, n, passes, transposed=True) if x.ndim > 1 else None


def _conv(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return ConvCall(module, x, n, passes) if x.ndim == module.weight.ndim else None


def _embedding(module: nn.Embedding, x: Tensor, n: int, passes: int) -> LayerCall:
    return EmbeddingCall(module, x, n)


def _last_norm(module: nn.LayerNorm | nn.RMSNorm, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return LastNormCall(module, x, n) if x.ndim > len(module.normalized_shape) else None


def _batch_norm(module: nn.BatchNorm2d, x: Tensor, n: int, passes: int) -> LayerCall | None:
    running = module.running_mean is not None and not module.training
    return ChannelNormCall(module, x, n) if running and x.ndim > 1 else None


def _instance_norm(d: int, module: nn.InstanceNorm2d, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return ChannelNormCall(module, x, n) if x.ndim == d + 2 else None


def _group_norm(module: nn.GroupNorm, x: Tensor, n: int, passes: int) -> LayerCall | None:
    return ChannelNormCall(module, x, n) if x.ndim > 1 else None


_FORMULAS: dict[str, Formula] = {
    **{f"torch.nn.modules.conv.Conv{d}d": _conv for d in (1, 2, 3)},
    **{f"torch.nn.modules.batchnorm.BatchNorm{d}d": _batch_norm for d in (1, 2, 3)},
    **{f"torch.nn.modules.instancenorm.InstanceNorm{d}d": partial(_instance_norm, d) for d in (1, 2, 3)},
    "torch.nn.modules.linear.Linear": _linear,
    "torch.nn.modules.sparse.Embedding": _embedding,
    "torch.nn.modules.normalization.GroupNorm": _group_norm,
    "torch.nn.modules.normalization.LayerNorm": _last_norm,
    "torch.nn.modules.normalization.RMSNorm": _last_norm,
    TRANSPOSED_LINEAR: _transposed_linear,
}
"""By the type's full name, so that no other library is imported. A subclass may compute anything, and has no
formula.
"""


_HALF = (_linear, _transposed_linear)
"""Those that take half precision as it is."""


def formula_obstacle(module: nn.Module) -> str:
    """Why no analytic formula applies to the module; "" if one does.

    One applies to the exact type that holds its own weight and bias and computes what its type does. Pruning
    and weight norm leave only the type; an instance's own ``forward`` or a forward hook may change the
    outputs.
    """
    kind = type(module).__name__
    if type_name(module) not in _FORMULAS:
        return f"{kind} has no analytic formula"
    if not {name for name, p in module._parameters.items() if p is not None} <= {"weight", "bias"}:
        return f"{kind} is reparametrized"
    if module._forward_hooks or torch.nn.modules.module._global_forward_hooks:
        return f"{kind} has a forward hook"
    return f"{kind} has a forward of its own" if "forward" in vars(module) else ""


def layer_call(module: nn.Module, x: Tensor, n: int, passes: int) -> LayerCall | None:
    """The recorded call, or None if the input's layout is not one of n examples along the first axis."""
    if x.ndim == 0 or len(x) % n:
        return None
    formula, x = _FORMULAS[type_name(module)], x.detach()
    return formula(module, x if formula in _HALF else widened(x), n, passes)
