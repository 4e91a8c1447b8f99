"""Tr(H_eff C) from random cotangents in output space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import int_field
from tpv.estimators.base import Chunk, Contribution, Estimator, EstimatorRun, Problem
from tpv.estimators.layer_sweep import LayerSweep

_PAIRED_EXAMPLES, _PAIRED_CHUNKS = 64, 16
_DRAWN_AT_ONCE, _MANY_OUTPUTS = 2**26, 4096


@dataclass(frozen=True)
class Hutchinson(Estimator):
    r"""Unbiased estimate with R random cotangents of each example's own:

    .. math:: \frac1R \sum_r v_r^\top J C J^\top v_r, \qquad E[v v^\top] = I.

    One probe is a vector of random signs; several are orthogonal within an example (columns of a
    randomly signed Hadamard matrix where K is a power of two, else of a Haar-random frame), so that
    R = K probes are exact. Of many outputs (K > 4096 and R ≤ K/64: language models) they are independent
    signs, which is as good. Probes are drawn on the CPU: the same on every device and for every chunk size.

    ``mc_stderr`` comes from the scatter of an example's probes, which are draws without replacement
    from K (variance S²/R · (1 − R/K)); with one probe, from a second one on the first 64 examples and
    every 16th chunk of the data after.

    Cost per example: one forward pass and R sweeps, about 1.2 forward+backward passes for R = 1 and 0.8
    for each probe more.

    Args:
        probes: R. More than the K outputs are not needed, and K are used then.

    Raises:
        TPVError: if ``probes`` is not a positive int, or for a perturbation without variances.

    Source: Hutchinson (1990); random frames as in Epperly, Tropp & Webber, "XTrace" (2024).

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
        return _RandomSweep(self.probes, LayerSweep(problem, variance, passes=self.probes), problem.generator)


class _RandomSweep(EstimatorRun):
    def __init__(self, probes: int, layers: LayerSweep, generator: torch.Generator) -> None:
        self._probes, self._layers = probes, layers
        self._chunks = self._examples = 0
        self._probes_of = Probes(probes, generator)
        self.names = layers.names
        self.method = repr(Hutchinson(probes))

    def contribution(self, chunk: Chunk) -> Contribution:
        with self._layers.sweep.linearized(chunk.batch) as (outputs, squares):
            k = outputs[0].numel()
            v = self._probes_of(chunk, k)
            used = min(self._probes, k)
            paired = used == 1 < k and (
                self._examples < _PAIRED_EXAMPLES or self._chunks % _PAIRED_CHUNKS == 0
            )
            passes = 2 if paired else used
            swept = [
                self._layers.by_layer(squares(v[:, r].to(outputs), last=r == passes - 1))
                for r in range(passes)
            ]
        values = torch.stack(swept[:used], dim=1)
        noise = (swept[0] - swept[1]) / math.sqrt(2) if paired else probe_noise(values, k)
        self._chunks += 1
        self._examples += chunk.n
        return Contribution(values.mean(1), noise)

    def scratch(self, batch: Any) -> int:
        return self._layers.scratch(batch)

    def metadata(self) -> dict[str, Any]:
        return self._layers.metadata()


class Probes:
    """Each example's probes, drawn in the order of the examples whatever the chunks: a batch's at once, or
    one's if they are long.
    """

    def __init__(self, probes: int, generator: torch.Generator) -> None:
        self._probes, self._generator = probes, generator
        self._batch = self._first = -1
        self._drawn: list[Tensor] = []

    def __call__(self, chunk: Chunk, k: int) -> Tensor:
        """(n, R or 2, K); a chunk that is asked for again, or a part of it, gets the same."""
        if chunk.number != self._batch:
            self._batch, self._first, self._drawn = chunk.number, 0, []
        at_once = chunk.size if chunk.size * max(2, self._probes) * k <= _DRAWN_AT_ONCE else 1
        del self._drawn[: chunk.start - self._first]
        self._first = chunk.start
        while len(self._drawn) < chunk.n:
            self._drawn += cotangents(at_once, min(self._probes, k), k, self._generator).unbind()
        return torch.stack(self._drawn[: chunk.n])


def probe_noise(values: Tensor, k: int) -> Tensor | None:
    """Deviations (M, m) whose mean outer product is S²/R · (1 − R/K), the covariance of the mean of R of K;
    None for one of several.
    """
    r = values.shape[1]
    if r == 1 < k:
        return None
    scale = math.sqrt((1 - r / k) / max(r - 1, 1))  # also for independent signs, where R/K < 1/64
    return ((values - values.mean(1, keepdim=True)) * scale).flatten(0, 1)


def cotangents(n: int, probes: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, probes, K) with E[vvᵀ] = I for each, orthogonal within an example; two independent sign vectors for
    ``probes=1``.
    """
    if probes == 1 or (k > _MANY_OUTPUTS and probes <= k // 64):
        return _signs((n, max(2, probes), k), generator)
    if k & (k - 1) == 0:
        rows = torch.rand(n, k, generator=generator).argsort(1)[:, :probes]
        return _hadamard_rows(rows, k) * _signs((n, 1, k), generator)
    gaussian = torch.randn(n, k, probes, generator=generator, dtype=torch.float64)
    frame: Tensor = torch.linalg.qr(gaussian).Q
    return frame.transpose(1, 2) * math.sqrt(k)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1


def _hadamard_rows(rows: Tensor, order: int) -> Tensor:
    """Rows of Sylvester's matrix of a power of two: (−1)^(number of ones that row and column have in
    common).
    """
    common = rows.unsqueeze(-1) & torch.arange(order)
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1.0 - 2.0 * (common & 1).double()
