"""Finite differences of the outputs at draws of the whole displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpv.common.options import int_field
from tpv.estimators.base import TOTAL, Estimator, EstimatorRun, Problem
from tpv.estimators.draws import DrawnRun
from tpv.model.linearization import Linearization


@dataclass(frozen=True)
class MonteCarlo(Estimator):
    r"""Average of :math:`\|f(w+\delta_d) - f(w)\|^2` over D draws of δ that all examples share: no
    linearization.

    Cost per example: D + 1 forward passes.

    Args:
        draws: D; a fixed displacement needs and gets one.

    Raises:
        TPVError: if ``draws`` is not a positive int.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()  # linear in its weights: finite = linearized
        >>> x = torch.ones(5, 3).double()
        >>> finite, linear = (tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=e(8)).value
        ...                   for e in (tpv.MonteCarlo, tpv.LinearizedMonteCarlo))
        >>> abs(finite - linear) < 1e-12
        True
    """

    draws: int = 16

    def __post_init__(self) -> None:
        int_field(self, "draws", 1)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Forward passes at w* + δ."""
        return DrawnRun(problem, self.draws, "MonteCarlo", [TOTAL], _finite)


def _finite(
    lin: Linearization, batch: Any, delta: dict[str, Tensor], references: list[Tensor]
) -> list[Tensor]:
    """The output change: (f(w + δ) − f(w))², or the output space's own divergence."""
    displaced = lin.displaced(batch, delta)
    return [lin.output.divergence(reference, displaced) for reference in references]
