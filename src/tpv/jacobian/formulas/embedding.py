"""nn.Embedding: Σ_p onehot(token_p) ⊗ g_p."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from tpv.jacobian.formulas.base import LayerCall, Variance
from tpv.jacobian.formulas.factors import Factors, squared_norm


class EmbeddingCall(LayerCall):
    """Positions with the same token add before squaring: Σ_pq [token_p = token_q] ⟨g_p, g_q⟩."""

    def __init__(self, module: nn.Embedding, x: Tensor, n: int) -> None:
        self.rows, self.n = module.num_embeddings, n
        self.tokens = x.reshape(n, -1)
        self.positions = self.tokens.shape[1]
        self.scratch = self.positions**2
        self._padding = None if module.padding_idx is None else self.tokens == module.padding_idx

    def factors(self, g: Tensor) -> Factors:
        return Factors(self.tokens, self._positions(g))

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        g = self._positions(g)
        out = g.new_zeros(self.n, self.rows, g.shape[2])
        return {"weight": out.scatter_add_(1, self.tokens.unsqueeze(-1).expand_as(g), g)}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        g = self._positions(g)
        if not isinstance(variance["weight"].rows, float):
            scale = variance["weight"].full.sqrt().to(g.dtype)
            g = g * (scale[self.tokens] if scale.ndim == 2 and len(scale) == self.rows else scale)
        return {"weight": squared_norm([Factors(self.tokens, g)])}

    def _positions(self, g: Tensor) -> Tensor:
        """(n, positions, D), 0 at padding, to whose row PyTorch sends no gradient."""
        g = g.reshape(self.n, self.positions, -1)
        return g if self._padding is None else g.masked_fill(self._padding.unsqueeze(-1), 0)
