"""Tr(H_eff C) from random cotangents in output space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.counters import cotangents, seed_of, signs
from tpv.common.errors import TPVError
from tpv.common.options import int_field
from tpv.estimators.base import Chunk, Contribution, Estimator, EstimatorRun, Problem
from tpv.estimators.layer_sweep import LayerSweep

_FIRST_AGAIN, _EVERY_AGAIN = 8, 32


@dataclass(frozen=True)
class Hutchinson(Estimator):
    r"""Unbiased estimate with R random cotangents of each example's own:

    .. math:: \frac1R \sum_r v_r^\top J C J^\top v_r, \qquad E[v v^\top] = I.

    One probe is a vector of random signs; several are orthogonal within an example (randomly signed rows of
    a Hadamard matrix where K is a power of two, else of a Hartley matrix), so that R = K probes are exact. Of
    many outputs (K > 4096 and R ≤ K/64: language models) they are independent signs, which is as good.
    Probes are functions of the seed and of the example's place in the data
    (:mod:`tpv.common.counters`): the same on every device and for every batch and chunk size.

    ``mc_stderr`` comes from the scatter of an example's probes, which are draws without replacement
    from K (variance S²/R · (1 − R/K)). With one probe, the first 8 examples and every 32nd of the data
    after go through twice in the same pass (of small chunks at most half), as two rows with independent
    probes, whose difference is √2 times the error of one; the value comes from the first of the two alone.

    Cost per example: one forward pass and R sweeps, about 1.2 forward+backward passes for R = 1 and 0.8
    for each probe more.

    Args:
        probes: R. More than the K outputs are not needed, and K are used then.

    Raises:
        TPVError: if ``probes`` is not a positive int, or for a perturbation without variances.

    Source: Hutchinson (1990); orthogonal probes as in Epperly, Tropp & Webber, "XTrace" (2024).

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()
        >>> x = torch.ones(5, 3).double()
        >>> every = tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=tpv.Hutchinson(probes=2))
        >>> round(every.value, 6), round(every.mc_stderr, 6)
        (0.08, 0.0)
    """

    probes: int = 1

    def __post_init__(self) -> None:
        int_field(self, "probes", 1)

    def begin(self, problem: Problem) -> EstimatorRun:
        """A sweep of random cotangents."""
        bound = problem.bound
        variance = None if bound.deterministic else bound.variance()
        if variance is None:
            instead = "Exact()" if bound.deterministic else "LinearizedMonteCarlo(draws=16)"
            raise TPVError(
                f"Hutchinson needs a perturbation with variances, and {bound.spec!r} has none: use {instead}."
            )
        layers = LayerSweep(problem, variance, passes=self.probes)
        return _RandomSweep(self.probes, layers, seed_of(problem.generator))


class _RandomSweep(EstimatorRun):
    def __init__(self, probes: int, layers: LayerSweep, seed: int) -> None:
        self._probes, self._layers, self._seed = probes, layers, seed
        self._pairs = 0
        self.names = layers.names
        self.method = repr(Hutchinson(probes))

    def contribution(self, chunk: Chunk) -> Contribution:
        if self._probes == 1:
            return self._of_one_probe(chunk, self._again(chunk))
        with self._layers.sweep.linearized(chunk.batch) as (outputs, squares):
            k, rows = outputs[0].numel(), chunk.rows(outputs.device)
            used = min(self._probes, k)
            drawn = enumerate(cotangents(self._seed, rows, used, k))
            swept = [squares(v.to(outputs), last=r == used - 1) for r, v in drawn]
        values = torch.stack(self._layers.by_layer(swept), dim=1)
        return Contribution(values.mean(1), probe_noise(values, k))

    def _of_one_probe(self, chunk: Chunk, again: list[int]) -> Contribution:
        """Some examples are rows with a probe of their own once more."""
        with self._layers.sweep.linearized(chunk.with_again(again)) as (outputs, squares):
            k, rows = outputs[0].numel(), chunk.rows(outputs.device)
            probes = signs(self._seed, rows, k)
            if again:
                second = signs(self._seed, chunk.index + torch.tensor(again, device=rows.device), k, stream=1)
                probes = torch.cat([probes, second])
            (values,) = self._layers.by_layer([squares(probes.to(outputs), last=True)])
        values, repeated = values[: chunk.n], values[chunk.n :]
        noise = (values[again] - repeated) / math.sqrt(2)
        self._pairs += len(again)
        return Contribution(values, noise * (k > 1))

    def _again(self, chunk: Chunk) -> list[int]:
        """Which of a chunk's examples go through twice, counted from its first."""
        missing = _FIRST_AGAIN - self._pairs
        again = [i for i in range(chunk.n) if i < missing or (chunk.index + i) % _EVERY_AGAIN == 0]
        return again[: max(1, chunk.n // 2)]

    def scratch(self, batch: Any) -> int:
        return self._layers.scratch(batch)

    def metadata(self) -> dict[str, Any]:
        return self._layers.metadata()


def probe_noise(values: Tensor, k: int) -> Tensor | None:
    """Deviations (M, m) whose mean outer product is S²/R · (1 − R/K), the covariance of the mean of R of K;
    None for one of several.
    """
    r = values.shape[1]
    if r == 1 < k:
        return None
    scale = math.sqrt((1 - r / k) / max(r - 1, 1))  # also for independent signs, where R/K < 1/64
    return ((values - values.mean(1, keepdim=True)) * scale).flatten(0, 1)
