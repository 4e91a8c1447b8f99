"""nn.Linear, and the same with a transposed weight: Σ_p g_p ⊗ a_p over the positions p of an example."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tpv.jacobian.formulas.base import LayerCall, Variance, gram_is_cheaper, gram_square
from tpv.jacobian.formulas.factors import Factors


class LinearCall(LayerCall):
    """‖Σ_p g_p ⊗ a_p‖² by the Gram matrices of g and a where positions are few, else by the product itself.

    Args:
        transposed: the weight is (in, out), as in the ``Conv1D`` of transformers, so that its gradient is Σ_p
            a_p ⊗ g_p.
    """

    def __init__(self, module: nn.Module, x: Tensor, n: int, passes: int, transposed: bool = False) -> None:
        assert isinstance(module.weight, Tensor)
        self.n, self.transposed, self.shape = n, transposed, module.weight.shape
        self.a = x.reshape(n, -1, x.shape[-1])
        self.positions, inputs = self.a.shape[1:]
        self.use_gram = gram_is_cheaper(self.positions, inputs, module.weight.numel() // inputs, passes)
        self.scratch = self.positions**2 if self.use_gram else module.weight.numel()
        self._input_gram: Tensor | None = None

    def factors(self, g: Tensor) -> Factors:
        g = self._positions(g)
        return Factors(self.a, g) if self.transposed else Factors(g, self.a)

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        f = self.factors(g)
        out = {"weight": torch.bmm(f.left.transpose(1, 2), f.right)} if "weight" in names else {}
        return out | ({"bias": self._positions(g).sum(1)} if "bias" in names else {})

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        out = {}
        if "weight" in variance:
            rows = variance["weight"].rows
            if rows is not None and self.use_gram:
                g_rows, a_rows = (1.0, rows) if self.transposed else (rows, 1.0)
                out["weight"] = gram_square(self._positions(g) * g_rows, self._gram(a_rows))
            elif self.positions == 1:
                f, full = self.factors(g), variance["weight"].full.expand(self.shape).to(g.dtype)
                out["weight"] = ((f.left[:, 0].square() @ full) * f.right[:, 0].square()).sum(1)
            else:
                out["weight"] = variance["weight"].square(self.gradients(g, ["weight"])["weight"])
        if "bias" in variance:
            out["bias"] = variance["bias"].square(self._positions(g).sum(1))
        return out

    def _gram(self, rows: float | Tensor) -> Tensor:
        """(n, P, P) inner products of inputs, scaled by the variance; cached for later cotangents."""
        if self._input_gram is None:
            a = self.a * rows
            self._input_gram = torch.bmm(a, a.transpose(1, 2))
        return self._input_gram

    def _positions(self, g: Tensor) -> Tensor:
        return g.reshape(self.n, self.positions, -1)
