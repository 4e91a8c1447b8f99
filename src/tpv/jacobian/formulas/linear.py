"""nn.Linear, and the same with a transposed weight: Σ_p g_p ⊗ a_p over the positions p of an example."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tpv.jacobian.formulas.base import LayerCall, Variance, gram_is_cheaper, gram_square
from tpv.jacobian.formulas.factors import Factors
from tpv.jacobian.formulas.precision import products, widened


class InputGram:
    """(n, P, P) inner products of an input's positions, computed once for all calls that share the input.

    Args:
        a: (n, P, inputs).
        passes: how many cotangents the batch will see; after the last use, the products are freed.
    """

    def __init__(self, a: Tensor, passes: int) -> None:
        self.a, self._passes = a, passes
        self._users, self._uses = 1, 0
        self._products: Tensor | None = None

    def share(self) -> InputGram:
        """The same, for one call more."""
        self._users += 1
        return self

    def of(self, dtype: torch.dtype) -> Tensor:
        """The products, from the input in the precision in which the layer multiplied it."""
        self._uses += 1
        a = self.a.to(dtype)
        value = products(a, a.transpose(1, 2)) if self._products is None else self._products
        self._products = value if self._uses < self._users * self._passes else None
        return value


class LinearCall(LayerCall):
    """‖Σ_p g_p ⊗ a_p‖² by the Gram matrices of g and a where positions are few, else by the product itself.

    Args:
        transposed: the weight is (in, out), as in the ``Conv1D`` of transformers, so that its gradient is Σ_p
            a_p ⊗ g_p.
    """

    half = True

    def __init__(self, module: nn.Module, x: Tensor, n: int, passes: int, transposed: bool = False) -> None:
        assert isinstance(module.weight, Tensor)
        self.n, self.transposed, self.shape = n, transposed, module.weight.shape
        self.a = x.reshape(n, -1, x.shape[-1])
        self.positions, inputs = self.a.shape[1:]
        self.use_gram = gram_is_cheaper(self.positions, inputs, module.weight.numel() // inputs, passes)
        self.scratch = self.positions**2 if self.use_gram else module.weight.numel()
        self._gram = InputGram(self.a, passes)

    def share_input(self, other: LayerCall) -> None:
        if isinstance(other, LinearCall) and other is not self and self.use_gram and other.use_gram:
            self._gram = other._gram.share()

    def factors(self, g: Tensor) -> Factors:
        g = self._positions(g)
        a = self.a.to(g.dtype)
        return Factors(a, g) if self.transposed else Factors(g, a)

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        f = self.factors(g)
        out = {"weight": products(f.left.transpose(1, 2), f.right)} if "weight" in names else {}
        return out | ({"bias": self._summed(g)} if "bias" in names else {})

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        out = {}
        if "weight" in variance:
            rows = variance["weight"].rows
            if rows is not None and self.use_gram:
                out["weight"] = self._gram_square(self._positions(g), rows)
            elif self.positions == 1:
                f = self.factors(widened(g))
                full = variance["weight"].full.expand(self.shape).to(f.left.dtype)
                out["weight"] = ((f.left[:, 0].square() @ full) * f.right[:, 0].square()).sum(1)
            else:
                out["weight"] = variance["weight"].square(self.gradients(g, ["weight"])["weight"])
        if "bias" in variance:
            out["bias"] = variance["bias"].square(self._summed(g))
        return out

    def _gram_square(self, g: Tensor, rows: float | Tensor) -> Tensor:
        if isinstance(rows, float):
            return gram_square(g, self._gram.of(g.dtype))
        g, rows = widened(g), rows.to(widened(g).dtype)
        if not self.transposed:
            return gram_square(g * rows, self._gram.of(g.dtype))
        a = self.a.to(g.dtype) * rows
        return gram_square(g, products(a, a.transpose(1, 2)))

    def _positions(self, g: Tensor) -> Tensor:
        return g.reshape(self.n, self.positions, -1)

    def _summed(self, g: Tensor) -> Tensor:
        """Over positions; half precision in float32."""
        return self._positions(g).sum(1, dtype=widened(g.new_empty(0)).dtype)
