"""Normalisation layers: y = γ ⊙ x̂ + β with x̂ the same function without its affine part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tpv.jacobian.formulas.base import LayerCall, Variance


class LastNormCall(LayerCall):
    """LayerNorm and RMSNorm, in closed form: ∂/∂γ = Σ_p g_p ⊙ x̂_p and ∂/∂β = Σ_p g_p over an example's
    positions p.
    """

    def __init__(self, module: nn.LayerNorm | nn.RMSNorm, x: Tensor, n: int) -> None:
        self.module, self.x = module, x
        self.shape = (n, -1, *module.normalized_shape)

    @cached_property
    def x_hat(self) -> Tensor:
        if isinstance(self.module, nn.LayerNorm):
            return F.layer_norm(self.x, self.module.normalized_shape, eps=self.module.eps)
        return F.rms_norm(self.x, self.module.normalized_shape, eps=self.module.eps)

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        products = {"weight": lambda: g * self.x_hat, "bias": lambda: g}
        return {name: products[name]().reshape(self.shape).sum(1) for name in names}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        return {name: variance[name].square(d) for name, d in self.gradients(g, variance).items()}


class ChannelNormCall(LayerCall):
    """BatchNorm in evaluation mode and GroupNorm, channels on axis 1.

    Both sums come from one fused kernel: BatchNorm's own backward over the batch folded into channels,
    (1, N·C, ...), gives them per example. GroupNorm's x̂ goes through it with mean 0 and variance 1.
    """

    def __init__(self, module: _BatchNorm | nn.GroupNorm, x: Tensor, n: int) -> None:
        self.n = n
        if isinstance(module, nn.GroupNorm):
            x = F.group_norm(x, module.num_groups, eps=module.eps)
            self.mean, self.var, self.eps = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1]), 0.0
        else:
            assert module.running_mean is not None
            assert module.running_var is not None
            self.mean, self.var, self.eps = module.running_mean.to(x), module.running_var.to(x), module.eps
        self.x = x.reshape(1, -1, *x.shape[2:])

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        rows, channels = g.shape[:2]
        mean, var = self.mean.repeat(rows), self.var.repeat(rows)
        folded = g.reshape(self.x.shape)
        _, weight, bias = torch.ops.aten.native_batch_norm_backward(
            folded, self.x, None, mean, var, None, None, False, self.eps, (False, True, True)
        )
        found = {"weight": weight, "bias": bias}
        return {name: found[name].reshape(self.n, -1, channels).sum(1) for name in names}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        return {name: variance[name].square(d) for name, d in self.gradients(g, variance).items()}
