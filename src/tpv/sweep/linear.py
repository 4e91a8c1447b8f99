"""nn.Linear: the gradient of an example is Σ_p g_p ⊗ a_p over its positions p."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from tpv.sweep.layer import LayerCall, Variance, gram_is_cheaper, gram_square


class LinearCall(LayerCall):
    """‖Σ_p g_p ⊗ a_p‖² by the Gram matrices of g and a where positions are few, else by the product itself."""

    def __init__(self, module: nn.Linear, x: Tensor, n: int, passes: int) -> None:
        self.n = n
        self.a = x.reshape(n, -1, module.in_features)
        self.use_gram = gram_is_cheaper(self.a.shape[1], module.in_features, module.out_features, passes)

    @cached_property
    def gram(self) -> Tensor:
        return torch.bmm(self.a, self.a.transpose(1, 2))

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        g = g.reshape(self.n, self.a.shape[1], -1)
        out = {"weight": torch.bmm(g.transpose(1, 2), self.a)} if "weight" in names else {}
        return out | ({"bias": g.sum(1)} if "bias" in names else {})

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        g = g.reshape(self.n, self.a.shape[1], -1)
        out = {}
        if "weight" in variance:
            scale = variance["weight"].rows
            if scale is not None and self.use_gram:
                out["weight"] = gram_square(g * scale, self.gram)
            else:
                out["weight"] = variance["weight"].square(torch.bmm(g.transpose(1, 2), self.a))
        if "bias" in variance:
            out["bias"] = variance["bias"].square(g.sum(1))
        return out
