"""Label noise through the kernel of the training inputs, without sampling."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from tpv.estimators.base import TOTAL, Chunk, Contribution, EstimatorRun, Problem, squared_norms
from tpv.model.batches import narrow
from tpv.ntk.jacobian import JacobianRows, gram
from tpv.results.spectrum import Spectrum
from tpv.training.fits import Interpolation
from tpv.training.label_noise import LabelNoise
from tpv.training.noisy_fit import NoisyFit

NO_LAYERS = "label noise moves all layers at once, and their contributions do not add up"
_BYTES, _DECIDED = 2**26, 0.2


class KernelProcedure(EstimatorRun):
    r"""Σᵢ ‖std φᵢ K(x, ·)uᵢ‖² of every example x, and over all examples the Gram matrix of these columns.

    The latter gives the draw-to-draw standard deviation: for one draw TPV is a quadratic form εᵀSε, of
    variance 2 Tr(S²).
    """

    method = "Exact(), through the kernel"
    no_layers = NO_LAYERS

    def __init__(self, problem: Problem, law: LabelNoise) -> None:
        self.names = [TOTAL]
        self._lin = problem.lin
        self._fit = law.meet(problem.lin.weights.select(law.params))
        self._directions = self._fit.directions
        self._second = torch.zeros(*self._fit.ntk.shape, dtype=torch.float64, device=self._fit.ntk.device)
        self._examples = 0
        self._sweep = self._fit.ntk.sweep(problem.lin)
        self.chunk_size = max(
            1, _BYTES // (self._fit.train.rows * problem.outputs * self._fit.ntk.dtype.itemsize)
        )

    def contribution(self, chunk: Chunk) -> Contribution:
        outputs = self._lin.displaced(narrow(chunk.batch, 0, 1, chunk.n), {}).numel()
        chunks = functools.partial(self._fit.train.placed, chunk.batch, outputs, 0, self._fit.ntk.chunk_size)
        rows = JacobianRows(self._sweep, chunks, chunk.n * outputs)
        moved = gram(rows, self._fit.ntk.rows, self._fit.ntk.names) @ self._directions
        self._second += moved.T @ moved
        self._examples += chunk.n
        return Contribution(squared_norms(moved.reshape(chunk.n, -1)).unsqueeze(1))

    def metadata(self) -> dict[str, Any]:
        return self._fit.metadata()

    def extra_fields(self) -> dict[str, Any]:
        k, _ = self._fit.ntk.eigh()
        in_sample = (self._fit.std * k * self._fit.filter).square() / self._fit.train.examples
        second = self._second / self._examples
        _warn_if_decided_by_rounding(self._fit, second.diagonal())
        kept = self._fit.train.dimensions  # the others are zero: what centring and padding take out
        columns = (k, self._fit.filter, second.diagonal(), in_sample)
        return {
            "draw_std": math.sqrt(2) * torch.linalg.matrix_norm(second).item(),
            "spectrum": Spectrum(
                *(tuple(float(f"{x:.7g}") for x in column[:kept].tolist()) for column in columns)
            ),
        }


def _warn_if_decided_by_rounding(fit: NoisyFit, value: Tensor) -> None:
    """Say so where the smallest eigenvalues that are fitted carry the value: the cut-off or the kernel's
    rounding decides it then.
    """
    k, _ = fit.ntk.eigh()
    rounding = 30 * torch.finfo(fit.ntk.dtype).eps
    cutoff = fit.fit.rcond if isinstance(fit.fit, Interpolation) and fit.fit.rcond else 0.0
    for level, what in (
        (10 * cutoff, f"within a factor of 10 of rcond={cutoff:g}"),
        (rounding, "at the level of the kernel's rounding"),
    ):
        share = (value[k < level * k[0]].sum() / value.sum().clamp(min=math.ulp(0.0))).item()
        if share > _DECIDED:
            warnings.warn(
                f"{100 * share:.0f} % of the label-noise TPV comes from eigenvalues {what}, which may decide "
                "the number more than "
                "the network does: use GradientDescent(lr, steps), Ridge(gamma) with a stronger penalty, or "
                "a model in float64.",
                stacklevel=2,
            )
            return
