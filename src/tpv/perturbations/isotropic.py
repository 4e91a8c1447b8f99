"""Isotropic weight noise, C = σ²I."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tpv.common.options import number_field
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.base import DiagonalPerturbation
from tpv.perturbations.bound import Variances


@dataclass(frozen=True, repr=False)
class Isotropic(DiagonalPerturbation):
    r"""Normal noise of the same standard deviation on every weight, C = std²·I.

    ``Isotropic(1.0)`` makes TPV the trace :math:`\mathrm{Tr}(H_\mathrm{eff})` itself.

    Args:
        std: standard deviation, in units of the weights.
        params: glob patterns of the parameters that move, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: if ``std`` is not a number in [0, ∞).

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> result = tpv.estimate(model, torch.ones(1, 3).double(), tpv.Isotropic(1.0))
        >>> round(result.value, 9)  # 2 outputs × ‖x‖²
        6.0
    """

    std: float
    params: Patterns = None

    def __post_init__(self) -> None:
        number_field(self, "std", 0)

    def variance(self, weights: Weights) -> Variances:
        """std² for every parameter."""
        return {name: torch.tensor(float(self.std) ** 2, dtype=torch.float64) for name in weights}
