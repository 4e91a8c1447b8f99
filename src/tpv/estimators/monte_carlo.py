"""Draws of the whole displacement: linearized, and finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv._options import require_int
from tpv.estimators.base import TOTAL, Contribution, Draws, Estimator, Piece, Procedure, Setting, summed
from tpv.linearization import Linearization, masked

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

    def begin(self, setting: Setting) -> Procedure:
        """Jacobian-vector products."""
        return DrawnProcedure(setting, self.draws, "LinearizedMonteCarlo", [TOTAL], tangent, undisturbed=False)


@dataclass(frozen=True)
class MonteCarlo(Estimator):
    r"""Average of :math:`\|f(w+\delta_d) - f(w)\|^2` over D draws of δ that all examples share: no linearization.

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

    def begin(self, setting: Setting) -> Procedure:
        """Forward passes at w* + δ."""
        return DrawnProcedure(setting, self.draws, "MonteCarlo", [TOTAL], finite)


Quantities = Callable[[Linearization, Any, Tensor | None, dict[str, Tensor]], list[Tensor]]
"""(lin, batch, outputs at w*, δ) to m terms, each to be summed over outputs."""


class DrawnProcedure(Procedure):
    """Averages over shared draws of δ of what ``quantities`` gives; ``undisturbed`` says whether it wants the outputs at w*."""

    no_layers = _NO_LAYERS
    backward = False

    def __init__(
        self, setting: Setting, draws: int, method: str, names: list[str], quantities: Quantities, *, undisturbed: bool = True
    ) -> None:
        fixed = setting.perturbation.deterministic
        self.names, self._quantities, self._lin, self._undisturbed = names, quantities, setting.lin, undisturbed
        self._deltas = Draws(setting, 1 if fixed else draws)
        self.draws = 0 if fixed else draws
        self.method = f"{method}(draws={self._deltas.count})"

    def contribution(self, piece: Piece) -> Contribution:
        base = self._lin.displaced(piece.batch, {}) if self._undisturbed else None
        values = torch.stack([self._draw(piece, base, d) for d in range(self._deltas.count)], dim=1)
        return Contribution(values if self.draws else values[:, 0])

    def facts(self) -> dict[str, Any]:
        return self._deltas.facts()

    def _draw(self, piece: Piece, base: Tensor | None, index: int) -> Tensor:
        found = self._quantities(self._lin, piece.batch, base, self._deltas[index])
        return torch.stack([summed(masked(q, piece.batch)) for q in found], dim=1)


def tangent(lin: Linearization, batch: Any, base: Tensor | None, delta: dict[str, Tensor]) -> list[Tensor]:
    """(J δ)²."""
    return [lin.jvp(batch, delta)[1].double().square()]


def finite(lin: Linearization, batch: Any, base: Tensor | None, delta: dict[str, Tensor]) -> list[Tensor]:
    """What the outputs moved by: (f(w + δ) − f(w))², or the output's own divergence."""
    assert base is not None
    return [lin.output.divergence(base, lin.displaced(batch, delta))]


def comparison(lin: Linearization, batch: Any, base: Tensor | None, delta: dict[str, Tensor]) -> list[Tensor]:
    """(Δz − Jδ)², the finite divergence and (Jδ)² from the same δ."""
    assert base is not None
    moved, linear = lin.displaced(batch, delta), lin.jvp(batch, delta)[1].double()
    before, after = (lin.output.coordinates(f.double(), base.double()) for f in (base, moved))
    return [(masked(after - before, batch) - linear).square(), lin.output.divergence(base, moved), linear.square()]
