"""Draws of the whole displacement: linearized, and finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.options import require_int
from tpv.estimators.base import TOTAL, Chunk, Contribution, Draws, Estimator, EstimatorRun, Problem, summed
from tpv.estimators.control import ControlSums
from tpv.model.linearization import Linearization, masked
from tpv.perturbations.base import control

_NO_LAYERS = "each draw moves all layers at once; the split by layer needs Exact or Hutchinson"


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
        >>> tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=tpv.LinearizedMonteCarlo(draws=64)).stderr > 0
        True
    """

    draws: int = 16

    def __post_init__(self) -> None:
        require_int("LinearizedMonteCarlo", "draws", self.draws, 1)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Jacobian-vector products."""
        return DrawnProcedure(
            problem, self.draws, "LinearizedMonteCarlo", [TOTAL], tangent, undisturbed=False
        )


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
        >>> model = torch.nn.Linear(3, 2).double()  # linear in its weights: finite = first order, draw by draw
        >>> x = torch.ones(5, 3).double()
        >>> finite, linear = (tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=e(8)).value
        ...                   for e in (tpv.MonteCarlo, tpv.LinearizedMonteCarlo))
        >>> abs(finite - linear) < 1e-12
        True
    """

    draws: int = 16

    def __post_init__(self) -> None:
        require_int("MonteCarlo", "draws", self.draws, 1)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Forward passes at w* + δ."""
        return DrawnProcedure(problem, self.draws, "MonteCarlo", [TOTAL], finite)


Quantities = Callable[[Linearization, Any, dict[str, Tensor], list[Tensor]], list[Tensor]]
"""(lin, batch, δ, outputs to compare with: at w*, and at the control if there is one) to m terms, each to be
summed over outputs.

What compares with outputs gives one term more where there is a control: the finite divergence from it."""


class DrawnProcedure(EstimatorRun):
    """Averages over shared draws of δ of what ``quantities`` gives; ``undisturbed`` says whether it wants
    outputs to compare with.

    Where the perturbation has a control, ``names[followed]`` is measured at it too.
    """

    no_layers = _NO_LAYERS
    backward = False

    def __init__(
        self,
        problem: Problem,
        draws: int,
        method: str,
        names: list[str],
        quantities: Quantities,
        *,
        undisturbed: bool = True,
        followed: int = 0,
    ) -> None:
        fixed = problem.perturbation.deterministic
        self.names, self._quantities, self._lin, self._undisturbed = (
            names,
            quantities,
            problem.lin,
            undisturbed,
        )
        self._deltas = Draws(problem, 1 if fixed else draws)
        self.draws = 0 if fixed else draws
        self.method = f"{method}(draws={self._deltas.count})"
        delta = control(problem.perturbation, problem.lin.weights)
        self._control = None if delta is None else ControlSums(delta, followed)

    def contribution(self, chunk: Chunk) -> Contribution:
        references = self._references(chunk)
        drawn = torch.stack(
            [self._values(chunk, self._deltas[d], references) for d in range(self._deltas.count)], dim=1
        )
        if self._control is not None:
            self._control.update(self._values(chunk, self._control.delta, references), drawn, len(self.names))
        values = drawn[..., : len(self.names)]
        return Contribution(values if self.draws else values[:, 0])

    def metadata(self) -> dict[str, Any]:
        return self._deltas.metadata() | (self._control.metadata() if self._control is not None else {})

    def _references(self, chunk: Chunk) -> list[Tensor]:
        if not self._undisturbed:
            return []
        deltas = [{}] if self._control is None else [{}, self._control.delta]
        return [self._lin.displaced(chunk.batch, delta) for delta in deltas]

    def _values(self, chunk: Chunk, delta: dict[str, Tensor], references: list[Tensor]) -> Tensor:
        found = self._quantities(self._lin, chunk.batch, delta, references)
        return torch.stack([summed(masked(q, chunk.batch)) for q in found], dim=1)


def tangent(
    lin: Linearization, batch: Any, delta: dict[str, Tensor], references: list[Tensor]
) -> list[Tensor]:
    """(J δ)²."""
    return [lin.jvp(batch, delta)[1].double().square()]


def finite(
    lin: Linearization, batch: Any, delta: dict[str, Tensor], references: list[Tensor]
) -> list[Tensor]:
    """What the outputs moved by: (f(w + δ) − f(w))², or the output's own divergence."""
    moved = lin.displaced(batch, delta)
    return [lin.output.divergence(reference, moved) for reference in references]


def comparison(
    lin: Linearization, batch: Any, delta: dict[str, Tensor], references: list[Tensor]
) -> list[Tensor]:
    """(Δz − Jδ)², the finite divergence and (Jδ)² from the same δ."""
    base, *controls = references
    moved, linear = lin.displaced(batch, delta), lin.jvp(batch, delta)[1].double()
    before, after = (lin.output.coordinates(f.double(), base.double()) for f in (base, moved))
    gap = (masked(after - before, batch) - linear).square()
    return [
        gap,
        lin.output.divergence(base, moved),
        linear.square(),
        *(lin.output.divergence(c, moved) for c in controls),
    ]
