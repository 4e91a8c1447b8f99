"""Draws of the whole displacement: linearized, and finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv._options import require_int
from tpv.estimators.base import TOTAL, Contribution, Draws, Estimator, Piece, Procedure, Setting, squared_norms
from tpv.linearization import Linearization

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
        return DrawnProcedure(setting, self.draws, "LinearizedMonteCarlo", [TOTAL], tangent)


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


Quantities = Callable[[Linearization, Any, Callable[[], Tensor], dict[str, Tensor]], list[Tensor]]


class DrawnProcedure(Procedure):
    """Averages over shared draws: ``quantities(lin, batch, undisturbed, δ)`` gives m differences of outputs to square."""

    no_layers = _NO_LAYERS

    def __init__(self, setting: Setting, draws: int, method: str, names: list[str], quantities: Quantities) -> None:
        fixed = setting.perturbation.deterministic
        self.names, self._quantities, self._lin = names, quantities, setting.lin
        self._deltas = Draws(setting, 1 if fixed else draws)
        self.draws = 0 if fixed else draws
        self.method = f"{method}(draws={self._deltas.count})"

    def contribution(self, piece: Piece) -> Contribution:
        base = functools.cache(functools.partial(self._undisturbed, piece))
        values = torch.stack([self._draw(piece, base, d) for d in range(self._deltas.count)], dim=1)
        return Contribution(values if self.draws else values[:, 0])

    @torch.no_grad()
    def _undisturbed(self, piece: Piece) -> Tensor:
        return self._lin(piece.batch).double()

    def facts(self) -> dict[str, Any]:
        return self._deltas.facts()

    def _draw(self, piece: Piece, base: Callable[[], Tensor], index: int) -> Tensor:
        found = self._quantities(self._lin, piece.batch, base, self._deltas[index])
        return torch.stack([squared_norms(q) for q in found], dim=1)


def tangent(lin: Linearization, batch: Any, base: Callable[[], Tensor], delta: dict[str, Tensor]) -> list[Tensor]:
    """J δ."""
    return [lin.jvp(batch, delta)[1].double()]


def finite(lin: Linearization, batch: Any, base: Callable[[], Tensor], delta: dict[str, Tensor]) -> list[Tensor]:
    """f(w + δ) − f(w)."""
    return [lin.displaced(batch, delta).double() - base()]


def comparison(lin: Linearization, batch: Any, base: Callable[[], Tensor], delta: dict[str, Tensor]) -> list[Tensor]:
    """Δf − Jδ, Δf and Jδ from the same δ."""
    (moved,), (linear,) = finite(lin, batch, base, delta), tangent(lin, batch, base, delta)
    return [moved - linear, moved, linear]
