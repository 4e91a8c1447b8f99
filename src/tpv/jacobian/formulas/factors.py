"""Gradients of a matrix as sums of outer products over positions, never written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpv.jacobian.formulas.precision import products


@dataclass(frozen=True)
class Factors:
    """The gradient Σ_p left_p ⊗ right_p of each example.

    Attributes:
        left: (n, P, rows), or (n, P) integers for rows of the identity: the tokens of an embedding.
        right: (n, P, columns).
    """

    left: Tensor
    right: Tensor

    @property
    def positions(self) -> int:
        return self.right.shape[1]

    def scaled(self, rows: float | Tensor) -> Factors:
        """The same with each row of the matrix scaled, by one number or by one for each row."""
        if isinstance(rows, float):
            return self if rows == 1 else Factors(self.left, self.right * rows)
        rows = rows.to(torch.promote_types(self.right.dtype, torch.float32))
        if self.left.is_floating_point():
            return Factors(self.left * rows, self.right)
        return Factors(self.left, self.right * rows[self.left].unsqueeze(-1))


def squared_norm(parts: Sequence[Factors]) -> Tensor:
    """(n,) ‖Σ_i G_i‖² = Σ_ij Σ_pq ⟨left_ip, left_jq⟩⟨right_ip, right_jq⟩ of the parts' gradients G_i.

    Cost: products of P² positions with rows + columns each, instead of P·rows·columns.
    """
    total = torch.zeros(len(parts[0].right), device=parts[0].right.device)
    for i, a in enumerate(parts):
        for j, b in enumerate(parts[: i + 1]):
            rights = products(a.right, b.right.transpose(1, 2))
            inner = rights.mul_(_products(a.left, b.left)).sum((1, 2))
            total = total + (inner if i == j else 2 * inner)
    return total


def _products(a: Tensor, b: Tensor) -> Tensor:
    """(n, P, Q) inner products of rows of a and b."""
    if a.is_floating_point() and b.is_floating_point():
        return products(a, b.transpose(1, 2))
    if a.is_floating_point():
        return a.gather(2, b.unsqueeze(1).expand(-1, a.shape[1], -1))
    if b.is_floating_point():
        return _products(b, a).transpose(1, 2)
    return a.unsqueeze(2) == b.unsqueeze(1)
