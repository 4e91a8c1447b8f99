"""The interface of a layer formula: per-example gradients from the input and the output gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from tpv.jacobian.formulas.factors import Factors
from tpv.jacobian.formulas.precision import products, widened


class LayerCall(ABC):
    """One call of one layer on n examples, with its input recorded.

    Each subclass handles a single layer type. ``g`` is always the gradient of ⟨v, f⟩ with respect to the
    layer's output, one cotangent v per example; parameters go by their local names ("weight", "bias").

    Attributes:
        scratch: numbers per example that :meth:`squares` writes out at a time, beyond the size of g.
        positions: how many outer products make up the gradient of "weight" (:meth:`factors`), 0 if it has no
            such form.
        reruns: whether the module itself runs again, which no backward hook may do; g is then
            (n, total size of the outputs of an example), all outputs flattened and joined.
        half: whether it takes inputs and output gradients in half precision as they are, else as float32.
    """

    scratch: int = 0
    positions: int = 0
    reruns: bool = False
    half: bool = False

    @abstractmethod
    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Per-example gradients (n, \\*parameter shape) of the parameters in ``names``."""

    @abstractmethod
    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        """(n,) Σᵢ c_i (∂⟨v, f⟩/∂w_i)² of each parameter in ``variance``."""

    def share_input(self, other: LayerCall) -> None:
        """Take over what an earlier call of the same type computes from the same input."""
        return

    def factors(self, g: Tensor) -> Factors:
        """The gradient of "weight" as a sum of outer products, for calls with ``positions``."""
        raise NotImplementedError


class Variance:
    """A parameter's variance c, broadcastable to its shape, in the forms that the formulas need.

    Attributes:
        full: c itself; 1 where c is a single number, by which the caller multiplies the sum of squares.
        rows: √c as 1.0 or as one number per row (first axis); None if c varies within a row.
    """

    def __init__(self, full: Tensor, ndim: int) -> None:
        single = full.numel() == 1
        self.full = torch.ones_like(full) if single else full
        self.rows: float | Tensor | None = 1.0 if single else None
        if not single and full.ndim == ndim and full.numel() == full.shape[0]:
            self.rows = full.sqrt().reshape(-1)

    def square(self, gradient: Tensor) -> Tensor:
        """(n,) Σᵢ c_i gradient_i² of materialized per-example gradients (n, \\*shape)."""
        flat = widened(gradient).reshape(len(gradient), -1)
        if isinstance(self.rows, float):
            norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
            return norm.double().square()
        weights = self.full.expand(gradient.shape[1:]).reshape(-1).to(flat.dtype)
        return torch.mv(flat.square(), weights)


def gram_square(left: Tensor, right_gram: Tensor) -> Tensor:
    """‖Σ_p left_p ⊗ right_p‖² = Σ_pq ⟨left_p, left_q⟩⟨right_p, right_q⟩ from (B, P, F) and (B, P, P), as
    (B,).
    """
    return products(left, left.transpose(1, 2)).mul_(right_gram).sum((1, 2))


def gram_is_cheaper(positions: int, inputs: int, outputs: int, passes: int) -> bool:
    """Whether Gram matrices, the input's shared by ``passes`` cotangents, take at most a quarter more
    products than the gradient.

    The gradient must be written out besides, and that costs more than the difference.
    """
    return positions * (inputs / passes + outputs) <= 1.25 * inputs * outputs


def checksum(t: Tensor) -> Tensor:
    """(sum, sum of magnitudes) in float64."""
    t = t.detach().double()
    return torch.stack([t.sum(), t.abs().sum()])


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference in a squared gradient that rounding, and activations at their kinks, can cause."""
    return {torch.float64: 1e-6, torch.float32: 2e-2}.get(dtype, 0.3)
