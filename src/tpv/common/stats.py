"""Additive sums in float64, and the means and standard errors that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import require_number


@dataclass(frozen=True)
class Estimate:
    """A mean with its two uncertainties.

    Attributes:
        value: the mean.
        stderr: its standard error from the sampling of examples and of probes or draws.
        mc_stderr: its Monte-Carlo standard error, from probes or draws with the data fixed. Both errors are
            nan where there is a single sample.
    """

    value: float
    stderr: float
    mc_stderr: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        r"""The normal interval :math:`\text{value} \pm z \cdot \text{stderr}`, z the quantile of the standard
        normal distribution at (1 + level)/2; nan where the standard error is unknown.

        Args:
            level: how often such intervals contain the truth, in (0, 1), where the mean over examples is
                about normal.

        Raises:
            TPVError: if ``level`` is not a number in (0, 1).

        Example:
            >>> [round(end, 3) for end in Estimate(10.0, 1.0, 0.0).interval(0.95)]
            [8.04, 11.96]
        """
        level = require_number("interval", "level", level, 0, 1, open_low=True)
        z = NormalDist().inv_cdf((1 + level) / 2)
        return self.value - z * self.stderr, self.value + z * self.stderr


class Moments:
    r"""Sums over examples of a vector q of m quantities, enough for means and their covariances.

    Each example contributes its average over draws, :math:`\bar q_n = \frac1D \sum_d q_{nd}`. Every
    attribute but ``names`` is a plain sum over examples, in float64 on the CPU, so that the moments of two
    shards of the data add up (:meth:`merge`): this is the state that ``torch.distributed`` reduces by
    ``ReduceOp.SUM``, one tensor after the other. :meth:`result` turns it into numbers, once, at the end.

    Example:
        >>> import torch
        >>> shards = [Moments(["q"]), Moments(["q"])]
        >>> for moments, values in zip(shards, torch.tensor([[1.0, 2.0], [3.0, 6.0]])):
        ...     moments.update(values.unsqueeze(1))
        >>> shards[0].merge(shards[1])
        >>> shards[0].result().estimates()["q"].value
        3.0

    Args:
        names: the m quantities.
        draws: number of weight draws that all examples share; 0 where every example has its own probes.
    """

    def __init__(self, names: list[str], draws: int = 0) -> None:
        m = len(names)
        self.names = names
        self.count = 0
        self.total = torch.zeros(m, dtype=torch.float64)
        self.outer = torch.zeros(m, m, dtype=torch.float64)
        self.by_draw = torch.zeros(draws, m, dtype=torch.float64)
        self.noise = torch.zeros(m, m, dtype=torch.float64)
        self.noise_count = 0

    def update(self, values: Tensor, noise: Tensor | None = None) -> None:
        """Add examples.

        Args:
            values: (N, m), or (N, D, m) with D shared draws.
            noise: (M, m), deviations whose mean outer product is the probe covariance of one
                example's value, from M of the examples.
        """
        values = values.detach().to("cpu", torch.float64)
        if values.ndim == 3:
            self.by_draw += values.sum(0)
            values = values.mean(1)
        self.count += values.shape[0]
        self.total += values.sum(0)
        self.outer += values.T @ values
        if noise is not None:
            noise = noise.detach().to("cpu", torch.float64)
            self.noise += noise.T @ noise
            self.noise_count += noise.shape[0]

    def merge(self, other: Moments) -> None:
        """Add the sums of another shard of the data.

        Raises:
            TPVError: if it counts other quantities or draws.
        """
        if other.names != self.names or other.by_draw.shape != self.by_draw.shape:
            raise TPVError("only moments of the same quantities and draws can be merged.")
        self.count += other.count
        self.noise_count += other.noise_count
        for mine, theirs in zip(self._sums(), other._sums(), strict=True):
            mine += theirs

    def _sums(self) -> tuple[Tensor, ...]:
        return self.total, self.outer, self.by_draw, self.noise

    def result(self) -> Means:
        """The numbers that the sums give: means with their covariances.

        Raises:
            TPVError: before the first example.
        """
        if not self.count:
            raise TPVError("there are no examples to average over.")
        mean, draw_means = self.total / self.count, self.by_draw / self.count
        mc = self._mc_covariance(mean, draw_means)
        # Probes of an example's own are part of the scatter of the examples; shared draws come on top
        # (their interaction with the examples is then counted twice: slightly conservative).
        shared = len(draw_means) > 0
        covariance = self._example_covariance(mean) + mc if shared else self._example_covariance(mean)
        return Means(tuple(self.names), self.count, mean, covariance, mc, draw_means)

    def _example_covariance(self, mean: Tensor) -> Tensor:
        """Of the mean, from the scatter of the examples."""
        if self.count < 2:
            return torch.full_like(self.outer, math.nan)
        return (self.outer / self.count - torch.outer(mean, mean)) / (self.count - 1)

    def _mc_covariance(self, mean: Tensor, draw_means: Tensor) -> Tensor:
        """Of the mean, from probes or draws with the data fixed."""
        draws = len(draw_means)
        if draws == 1:
            return torch.full_like(self.outer, math.nan)
        if draws > 1:
            centered = draw_means - mean
            return centered.T @ centered / (draws * (draws - 1))
        if self.noise_count:
            return self.noise / self.noise_count / self.count
        return torch.zeros_like(self.outer)


@dataclass(frozen=True)
class Means:
    """What :class:`Moments` amount to.

    Attributes:
        names: the m quantities.
        count: number of examples.
        mean: (m,) average over examples and draws.
        covariance: (m, m) of the mean, from everything.
        mc_covariance: (m, m) of the mean, from probes or draws, data fixed.
        draw_means: (D, m) average over examples for each shared draw.
    """

    names: tuple[str, ...]
    count: int
    mean: Tensor
    covariance: Tensor
    mc_covariance: Tensor
    draw_means: Tensor

    def estimates(self) -> dict[str, Estimate]:
        """Every quantity with its uncertainties."""
        stderr = self.covariance.diagonal().clamp(min=0).sqrt()
        mc_stderr = self.mc_covariance.diagonal().clamp(min=0).sqrt()
        rows = zip(self.mean.tolist(), stderr.tolist(), mc_stderr.tolist(), strict=True)
        return {name: Estimate(*row) for name, row in zip(self.names, rows, strict=True)}

    def ratio(self, numerator: str, denominator: str) -> Estimate:
        """Ratio of two means, with the delta method's standard errors; nan where the denominator is 0."""
        a, b = self.names.index(numerator), self.names.index(denominator)
        if self.mean[b] == 0:
            return Estimate(math.nan, math.nan, math.nan)
        value = (self.mean[a] / self.mean[b]).item()
        contrast = torch.zeros_like(self.mean)
        contrast[a], contrast[b] = 1.0, -value
        contrast /= self.mean[b]
        errors = [
            (contrast @ c @ contrast).clamp(min=0).sqrt().item()
            for c in (self.covariance, self.mc_covariance)
        ]
        return Estimate(value, *errors)


def independent_ratio(
    a: Estimate, b: Estimate, draws_a: Tensor | None = None, draws_b: Tensor | None = None
) -> Estimate:
    """Ratio a/b of two independent samples of examples, paired over the draws they share.

    Args:
        a, b: numerator and denominator.
        draws_a, draws_b: (D,) per-draw means of each, from the same draws; None if nothing is shared.
    """
    if b.value == 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = a.value / b.value
    if draws_a is None or draws_b is None or len(draws_a) < 2:
        return Estimate(
            value,
            math.hypot(a.stderr, value * b.stderr) / b.value,
            math.hypot(a.mc_stderr, value * b.mc_stderr) / b.value,
        )
    examples = [max(e.stderr**2 - e.mc_stderr**2, 0.0) for e in (a, b)]
    paired = (draws_a - value * draws_b).var().item() / len(draws_a)
    total = examples[0] + value**2 * examples[1] + paired
    return Estimate(value, math.sqrt(total) / b.value, math.sqrt(paired) / b.value)
