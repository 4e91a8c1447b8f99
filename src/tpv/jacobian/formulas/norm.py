"""Normalization layers: y = γ ⊙ x̂ + β, so that ∂/∂γ = Σ_p g_p ⊙ x̂_p and ∂/∂β = Σ_p g_p over an example's
positions p.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tpv.jacobian.formulas.base import LayerCall, Variance
from tpv.jacobian.formulas.precision import widened


class LastNormCall(LayerCall):
    """LayerNorm and RMSNorm, whose parameters have the shape of the last axes."""

    def __init__(self, module: nn.LayerNorm | nn.RMSNorm, x: Tensor, n: int) -> None:
        self.module, self.x = module, x
        self.shape = (n, -1, *module.normalized_shape)

    @cached_property
    def x_hat(self) -> Tensor:
        if isinstance(self.module, nn.LayerNorm):
            return F.layer_norm(self.x, self.module.normalized_shape, eps=self.module.eps)
        return F.rms_norm(self.x, self.module.normalized_shape, eps=self.module.eps)

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        g = widened(g)
        terms = {"weight": lambda: g * self.x_hat, "bias": lambda: g}
        return {name: terms[name]().reshape(self.shape).sum(1) for name in names}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        return {name: variance[name].square(d) for name, d in self.gradients(g, variance).items()}


class ChannelNormCall(LayerCall):
    """BatchNorm, InstanceNorm and GroupNorm, channels on axis 1: x̂ = (x − mean) · scale.

    Running statistics are the mean and the scale; GroupNorm and InstanceNorm without them normalize by the
    input's own statistics first, so that the mean is 0 and the scale 1.
    """

    def __init__(self, module: _BatchNorm | _InstanceNorm | nn.GroupNorm, x: Tensor, n: int) -> None:
        self.n = n
        self.mean = self.scale = None
        if isinstance(module, nn.GroupNorm):
            self.x = F.group_norm(x, module.num_groups, eps=module.eps)
        elif module.running_mean is None or module.running_var is None or module.training:
            self.x = F.group_norm(x, x.shape[1], eps=module.eps)
        else:
            self.x, self.mean = x, module.running_mean.to(x)
            self.scale = (module.running_var.to(x) + module.eps).rsqrt()

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        g = widened(g)
        mean = g.new_zeros(g.shape[1]) if self.mean is None else self.mean
        products, sums = (_fused_sums if g.device.type == "cpu" else _plain_sums)(g, self.x, mean)
        sums_of = {"weight": products if self.scale is None else products * self.scale, "bias": sums}
        return {name: sums_of[name].reshape(self.n, -1, g.shape[1]).sum(1) for name in names}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        return {name: variance[name].square(d) for name, d in self.gradients(g, variance).items()}


def _plain_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, channels) Σ_p g_p ⊙ (x_p − mean) and Σ_p g_p, from g and x (rows, channels, ...)."""
    g, x = g.flatten(2) if g.ndim > 2 else g.unsqueeze(2), x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    return (x - mean.unsqueeze(1)).mul_(g).sum(2), g.sum(2)


def _fused_sums(g: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one pass over memory: BatchNorm's own backward over channels (1, rows · channels, ...).

    On CUDA that kernel asks for statistics of a training batch, which an evaluation has not.
    """
    folded, rows = (1, -1, *x.shape[2:]), mean.repeat(len(x))
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        *(g.reshape(folded), x.reshape(folded), None, rows, torch.ones_like(rows)),
        *(None, None, False, 0.0, (False, True, True)),
    )
    return products.reshape(g.shape[:2]), sums.reshape(g.shape[:2])
