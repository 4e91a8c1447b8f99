"""Tr(H_eff C) from draws of the whole displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpv.common.options import int_field
from tpv.estimators.base import TOTAL, Estimator, EstimatorRun, Problem
from tpv.estimators.draws import DrawnRun
from tpv.model.linearization import Linearization
from tpv.model.products import jvp


@dataclass(frozen=True)
class LinearizedMonteCarlo(Estimator):
    r"""Average of :math:`\|J\delta_d\|^2` over D draws of δ that all examples share, for any perturbation.

    Unbiased for Tr(H_eff C). A draw's error does not fall with the number of examples, for they share it:
    the two standard errors keep both apart.

    Cost per example and draw: one Jacobian-vector product, about 1.2 forward+backward passes.

    Args:
        draws: D; a fixed displacement needs and gets one.

    Raises:
        TPVError: if ``draws`` is not a positive int.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()
        >>> x = torch.ones(5, 3).double()
        >>> draws = tpv.LinearizedMonteCarlo(draws=64)
        >>> tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=draws).stderr > 0
        True
    """

    draws: int = 16

    def __post_init__(self) -> None:
        int_field(self, "draws", 1)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Jacobian-vector products."""
        return DrawnRun(problem, self.draws, "LinearizedMonteCarlo", [TOTAL], _tangent, undisturbed=False)


def _tangent(
    lin: Linearization, batch: Any, delta: dict[str, Tensor], references: list[Tensor]
) -> list[Tensor]:
    """(J δ)²."""
    return [jvp(lin, batch, delta)[1].double().square()]
