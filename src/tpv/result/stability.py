"""Training inputs against unseen inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tpv._format import plus_minus, table
from tpv._stats import Estimate, independent_ratio
from tpv.result.serialization import JSONResult
from tpv.result.tpv_result import TPVResult


@dataclass(frozen=True, repr=False)
class StabilityResult(JSONResult):
    """What :func:`tpv.stability` returns.

    Attributes:
        train, test: the two results.
    """

    train: TPVResult
    test: TPVResult

    @property
    def ratio_estimate(self) -> Estimate:
        """TPV(train) / TPV(test), paired over the draws of δ that both share."""
        draws = [torch.tensor(side.draws, dtype=torch.float64) if side.draws else None for side in (self.train, self.test)]
        return independent_ratio(self.train.estimate, self.test.estimate, *draws)

    @property
    def ratio(self) -> float:
        """TPV(train) / TPV(test)."""
        return self.ratio_estimate.value

    @property
    def ratio_stderr(self) -> float:
        """Standard error of the ratio, by the delta method."""
        return self.ratio_estimate.stderr

    @property
    def layers(self) -> dict[str, Estimate]:
        """Layer → ratio of its parts, where both results have a split."""
        return {name: independent_ratio(e, self.test.layers[name]) for name, e in self.train.layers.items() if name in self.test.layers}

    @property
    def verdict(self) -> str:
        """In plain words, whether the training number can stand for unseen data."""
        ratio, error = self.ratio, self.ratio_stderr
        if not math.isfinite(error):
            return "cannot tell: one draw has no standard error"
        low, high = ratio - 2 * error, ratio + 2 * error
        if low >= 1 / 1.5 and high <= 1.5:
            return "the training inputs tell the test value within a factor of 1.5"
        if high < 1 / 1.5 or low > 1.5:
            return "the training inputs mislead: they differ from the test value by more than a factor of 1.5"
        return "cannot tell: the interval of the ratio crosses the band of a factor of 1.5"

    def __str__(self) -> str:
        rows = [
            ("train", plus_minus(self.train.value, self.train.stderr), str(self.train.n_examples)),
            ("test", plus_minus(self.test.value, self.test.stderr), str(self.test.n_examples)),
            ("train/test", plus_minus(self.ratio, self.ratio_stderr), ""),
        ]
        text = table(("", "TPV", "examples"), rows)
        return f"{self.train.metadata.get('perturbation', '')}\n{self.train.metadata.get('estimator', '')}\n\n{text}\n\n{self.verdict}"

    __repr__ = __str__
