"""Label noise where the kernel is too large to be written out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import require_int
from tpv.estimators.base import TOTAL, Chunk, Contribution, Estimator, EstimatorRun, Problem, squared_norms
from tpv.estimators.kernel import NO_LAYERS
from tpv.model.memory import available_bytes
from tpv.training.label_noise import LabelNoise
from tpv.training.noisy_fit import NoisyFit


@dataclass(frozen=True)
class HutchPlusPlus(Estimator):
    r"""TPV of :class:`tpv.LabelNoise` by products with the kernel alone: large eigenvectors exactly, the rest
    by draws.

    For orthonormal u spanning about the ``rank`` largest eigenvectors of the kernel and noise ε

    .. math:: E\|J\delta\|^2 = \sum_u \|J J_{tr}^\top \varphi(\mathcal K) u\|^2
        + E_\varepsilon \|J J_{tr}^\top \varphi(\mathcal K) (\varepsilon - \textstyle\sum_u u u^\top
        \varepsilon)\|^2 ,

    unbiased for any u; the second term, averaged over D draws, is all that is random.

    Cost: 2 · rank products with the kernel and about 5 for each draw (1.7 forward+backward passes over the
        training inputs each), then one
    Jacobian-vector product for each example, eigenvector and draw. Memory: rank + D times the weights.

    Source: Meyer, Musco, Musco, Woodruff, "Hutch++: Optimal Stochastic Trace Estimation", arXiv 2010.09649.

    Args:
        rank: number of eigenvectors.
        draws: D.

    Raises:
        TPVError: for other perturbations, or if the displacements do not fit in memory.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)).double()
        >>> x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).double()
        >>> law = tpv.LabelNoise(0.1, x, tpv.Ridge(gamma=0.1))
        >>> exact, fast = (tpv.estimate(model, x, law, estimator=e) for e in (tpv.Exact(), tpv.HutchPlusPlus(rank=20, draws=4)))
        >>> abs(fast.value / exact.value - 1) < 0.01
        True
    """

    rank: int = 64
    draws: int = 8

    def __post_init__(self) -> None:
        require_int("HutchPlusPlus", "rank", self.rank, 1)
        require_int("HutchPlusPlus", "draws", self.draws, 2)

    def begin(self, problem: Problem) -> EstimatorRun:
        """Find the eigenvectors and fit the draws."""
        law = problem.perturbation
        if not isinstance(law, LabelNoise):
            raise TPVError(
                f"HutchPlusPlus() is for LabelNoise, and this is {law!r}: use LinearizedMonteCarlo(draws=16)."
            )
        at = problem.lin.weights.select(law.params)
        found = law.meet(at)
        needed = (self.rank + self.draws) * sum(w.numel() * w.element_size() for w in at.values())
        if needed > (free := available_bytes(found.ntk.device) // 2):
            raise TPVError(
                f"{self!r} keeps {self.rank + self.draws} displacements of the weights, {needed / 2**30:.1f} "
                "GiB, and "
                f"{free / 2**30:.1f} GiB may be used: give a lower rank."
            )
        return _Deflated(self, problem, found)


class _Deflated(EstimatorRun):
    backward = False
    no_layers = NO_LAYERS

    def __init__(self, spec: HutchPlusPlus, problem: Problem, fit: NoisyFit) -> None:
        self.names, self.method, self.draws = [TOTAL], repr(spec), spec.draws
        self._lin, self._fit = problem.lin, fit
        noise = torch.stack([fit.noise(problem.generator) for _ in range(spec.draws)], 1)
        vectors = fit.largest(spec.rank, problem.generator)
        self._rank = vectors.shape[1]
        rest = noise - vectors @ (vectors.T @ noise)
        self._tangents = fit.ntk.pull(fit.response(torch.cat([fit.std * vectors, rest], 1)))

    def contribution(self, chunk: Chunk) -> Contribution:
        values = torch.stack([self._moved(chunk, r) for r in range(self._rank + self.draws)], 1)
        exact, rest = values[:, : self._rank].sum(1, keepdim=True), values[:, self._rank :]
        return Contribution((exact + rest).unsqueeze(2))

    def _moved(self, chunk: Chunk, index: int) -> Tensor:
        _, tangent = self._lin.jvp(chunk.batch, {name: d[index] for name, d in self._tangents.items()})
        return squared_norms(tangent)

    def metadata(self) -> dict[str, Any]:
        return self._fit.metadata()

    def extra_fields(self) -> dict[str, Any]:
        return {"draw_std": math.nan}  # these draws vary by the small eigenvectors alone
