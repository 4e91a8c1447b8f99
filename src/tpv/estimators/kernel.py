"""Covariances that are known by a factor, such as label noise through its kernel: exactly, or by Hutch++."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import int_field
from tpv.estimators.base import TOTAL, Chunk, Contribution, Estimator, EstimatorRun, Problem, squared_norms
from tpv.model.batches import narrow
from tpv.model.memory import available_bytes
from tpv.model.products import jvp
from tpv.perturbations.factor import Factor

_NO_LAYERS = "label noise moves all layers at once, and their contributions do not add up"


class FactorRun(EstimatorRun):
    r"""Σᵢ ‖J(x) A uᵢ‖² of every example x, and over all examples the Gram matrix of these columns.

    The latter gives the draw-to-draw standard deviation: for one draw TPV is a quadratic form εᵀSε, of
    variance 2 Tr(S²).
    """

    method = "Exact(), through the kernel"
    no_layers = _NO_LAYERS

    def __init__(self, problem: Problem, factor: Factor) -> None:
        self.names = [TOTAL]
        self._lin, self._bound, self._factor = problem.lin, problem.bound, factor
        self._output_changes = factor.output_changes(problem.lin)
        self._second: Tensor | None = None
        self._examples = 0
        self.chunk_size = factor.chunk_size(problem.outputs)

    def contribution(self, chunk: Chunk) -> Contribution:
        outputs = self._lin.displaced(narrow(chunk.batch, 0, 1, chunk.n), {}).numel()
        changes = self._output_changes(chunk.batch, chunk.n, outputs)
        second = (changes.T @ changes).double()
        self._second = second if self._second is None else self._second.add_(second)
        self._examples += chunk.n
        return Contribution(squared_norms(changes.reshape(chunk.n, -1)).unsqueeze(1))

    def metadata(self) -> dict[str, Any]:
        return self._bound.metadata()

    def extra_fields(self) -> dict[str, Any]:
        assert self._second is not None
        second = self._second / self._examples
        return {
            "draw_std": math.sqrt(2) * torch.linalg.matrix_norm(second).item(),
            "spectrum": self._factor.spectrum(second.diagonal()),
        }


@dataclass(frozen=True)
class HutchPlusPlus(Estimator):
    r"""TPV of :class:`tpv.LabelNoise` by products with the kernel only: large eigenvectors exactly, the rest
    by draws.

    For orthonormal u spanning about the ``rank`` largest eigenvectors of the kernel and noise ε

    .. math:: E\|J\delta\|^2 = \sum_u \|J J_{tr}^\top \varphi(\mathcal K) u\|^2
        + E_\varepsilon \|J J_{tr}^\top \varphi(\mathcal K) (\varepsilon - \textstyle\sum_u u u^\top
        \varepsilon)\|^2 ,

    unbiased for any u; the second term, averaged over D draws, is all that is random.

    Cost: 2 · rank products with the kernel and about 5 for each draw (1.7 forward+backward passes over the
        training inputs each), then one Jacobian-vector product for each example, eigenvector and draw.
        Memory: rank + D times the weights.

    Source: Meyer, Musco, Musco, Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", arXiv 2010.09649.

    Args:
        rank: number of eigenvectors.
        draws: D.

    Raises:
        TPVError: for other perturbations, or if the displacements do not fit in memory.

    Example:
        >>> import torch, tpv
        >>> layers = torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)
        >>> model = torch.nn.Sequential(*layers).double()
        >>> x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double()
        >>> noise = tpv.LabelNoise(0.1, x, tpv.Ridge(gamma=0.1))
        >>> exact, fast = (tpv.estimate(model, x, noise, estimator=e)
        ...                for e in (tpv.Exact(), tpv.HutchPlusPlus(rank=20, draws=4)))
        >>> abs(fast.value / exact.value - 1) < 0.01
        True
    """

    rank: int = 64
    draws: int = 8

    def __post_init__(self) -> None:
        int_field(self, "rank", 1)
        int_field(self, "draws", 2)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Find the eigenvectors and fit the draws."""
        factor = problem.bound.factor
        if factor is None:
            raise TPVError(
                f"{self!r} is for LabelNoise only, and this is {problem.bound.spec!r}: use "
                "LinearizedMonteCarlo(draws=16)."
            )
        self._refuse_too_large(factor)
        return _Deflated(self, problem, factor)

    def _refuse_too_large(self, factor: Factor) -> None:
        needed, free = (
            (self.rank + self.draws) * factor.displacement_bytes,
            available_bytes(factor.device) // 2,
        )
        if needed > free:
            raise TPVError(
                f"{self!r} keeps {self.rank + self.draws} displacements of the weights, {needed / 2**30:.1f} "
                "GiB, and "
                f"{free / 2**30:.1f} GiB may be used: give a lower rank."
            )


class _Deflated(EstimatorRun):
    backward = False
    no_layers = _NO_LAYERS

    def __init__(self, spec: HutchPlusPlus, problem: Problem, factor: Factor) -> None:
        self.names, self.method, self.draws = [TOTAL], repr(spec), spec.draws
        self._lin, self._bound = problem.lin, problem.bound
        noise = torch.stack([factor.noise(problem.generator) for _ in range(spec.draws)], 1)
        vectors = factor.leading(spec.rank, problem.generator)
        self._rank = vectors.shape[1]
        rest = noise - vectors @ (vectors.T @ noise)
        self._tangents = factor.displacements(torch.cat([vectors, rest], 1))

    def contribution(self, chunk: Chunk) -> Contribution:
        values = torch.stack([self._values(chunk, r) for r in range(self._rank + self.draws)], 1)
        exact, rest = values[:, : self._rank].sum(1, keepdim=True), values[:, self._rank :]
        return Contribution((exact + rest).unsqueeze(2))

    def _values(self, chunk: Chunk, index: int) -> Tensor:
        _, tangent = jvp(self._lin, chunk.batch, {name: d[index] for name, d in self._tangents.items()})
        return squared_norms(tangent)

    def metadata(self) -> dict[str, Any]:
        return self._bound.metadata()

    def extra_fields(self) -> dict[str, Any]:
        return {"draw_std": math.nan}  # these draws vary by the small eigenvectors only
