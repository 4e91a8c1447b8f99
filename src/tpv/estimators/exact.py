"""Tr(H_eff C) without sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tpv.common.errors import TPVError
from tpv.estimators.base import (
    TOTAL,
    Chunk,
    Contribution,
    Estimator,
    EstimatorRun,
    Problem,
    squared_norms,
)
from tpv.estimators.draws import Draws
from tpv.estimators.kernel import FactorRun
from tpv.estimators.layer_sweep import LayerSweep
from tpv.model.products import jvp


@dataclass(frozen=True)
class Exact(Estimator):
    r"""The first-order TPV of every example, without sampling error.

    * diagonal C: :math:`\sum_k \sum_i c_i J_{ki}^2` by a sweep of the K basis cotangents, split by layer;
    * one fixed displacement: :math:`\|J\delta\|^2` by one Jacobian-vector product;
    * :class:`tpv.LabelNoise`: by the kernel between the examples and the training inputs, with its spectrum.

    Cost per example, in forward+backward passes: about 0.8 per output for a sweep, 1.2 for a fixed
    displacement.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()
        >>> result = tpv.estimate(model, torch.ones(5, 3).double(), tpv.Isotropic(0.1), estimator=tpv.Exact())
        >>> round(result.value, 6), result.mc_stderr  # 0.1² × 2 × (3 + 1)
        (0.08, 0.0)
    """

    def begin(self, problem: Problem) -> EstimatorRun:
        """A sweep or a Jacobian-vector product."""
        bound = problem.bound
        if bound.deterministic:
            return _Directional(problem)
        if bound.factor is not None:
            return FactorRun(problem, bound.factor)
        variance = bound.variance()
        if variance is None:
            raise TPVError(
                f"Exact() needs a diagonal or a fixed perturbation or LabelNoise, and {bound.spec!r} is none "
                "of them: "
                "use LinearizedMonteCarlo(draws=16)."
            )
        return _BasisSweep(LayerSweep(problem, variance, passes=problem.outputs))


class _BasisSweep(EstimatorRun):
    method = "Exact()"

    def __init__(self, layers: LayerSweep) -> None:
        self._layers = layers
        self.names = layers.names

    def contribution(self, chunk: Chunk) -> Contribution:
        with self._layers.sweep.linearized(chunk.batch) as (outputs, squares):
            n, k = outputs.reshape(len(outputs), -1).shape
            total = outputs.new_zeros((), dtype=torch.float64)
            for index in range(k):
                v = outputs.new_zeros(n, k)
                v[:, index] = 1
                total = total + squares(v, last=index == k - 1)
        return Contribution(*self._layers.by_layer([total]))

    def scratch(self, batch: Any) -> int:
        return self._layers.scratch(batch)

    def metadata(self) -> dict[str, Any]:
        return self._layers.metadata()


class _Directional(EstimatorRun):
    method = "Exact(), one Jacobian-vector product"
    backward = False
    no_layers = (
        "a fixed displacement moves all layers at once, and their contributions to ‖Jδ‖² do not add up"
    )

    def __init__(self, problem: Problem) -> None:
        self.names = [TOTAL]
        self._lin, self._deltas = problem.lin, Draws(problem, 1)

    def contribution(self, chunk: Chunk) -> Contribution:
        _, tangent = jvp(self._lin, chunk.batch, self._deltas[0])
        return Contribution(squared_norms(tangent).unsqueeze(1))

    def metadata(self) -> dict[str, Any]:
        return self._deltas.metadata()
