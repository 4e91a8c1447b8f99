"""Training inputs against unseen inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tpv.common.format import percent, plus_minus, table
from tpv.common.stats import Estimate, independent_ratio
from tpv.results.serialization import JSONResult
from tpv.results.tpv import TPVResult


@dataclass(frozen=True, repr=False)
class StabilityResult(JSONResult):
    """What :func:`tpv.stability` returns.

    For :class:`tpv.LabelNoise` ``train`` is in sample: the fit has followed the very noise that it is read
    with, by its leverage, and ``train`` does not estimate ``test``. Whether training inputs can tell is seen
    from ``cross_fitted``, the noise of one half of them read on the other: it estimates ``test_of_halves``,
    the noise of the same halves read on the test inputs. Both are larger than ``test``, because half as many
    examples hold the network less.

    Attributes:
        train, test: the two results.
        cross_fitted, test_of_halves: for label noise, else None.
    """

    train: TPVResult
    test: TPVResult
    cross_fitted: TPVResult | None = None
    test_of_halves: TPVResult | None = None

    @property
    def ratio_estimate(self) -> Estimate:
        """TPV(train) / TPV(test), paired over the draws of δ that both share; for label noise
        cross-fitted.
        """
        if self.cross_fitted and self.test_of_halves:
            return _ratio(self.cross_fitted, self.test_of_halves)
        return _ratio(self.train, self.test)

    @property
    def in_sample_ratio(self) -> Estimate:
        """TPV(train) / TPV(test) as they are."""
        return _ratio(self.train, self.test)

    @property
    def leverage(self) -> float:
        """For label noise, degrees of freedom over dimensions: the part of its own noise that the fit
        follows; nan where not computed.
        """
        return self.train.leverage

    @property
    def ratio(self) -> float:
        """TPV(train) / TPV(test); for label noise cross-fitted."""
        return self.ratio_estimate.value

    @property
    def ratio_stderr(self) -> float:
        """Standard error of the ratio, by the delta method."""
        return self.ratio_estimate.stderr

    @property
    def sides(self) -> dict[str, TPVResult]:
        """All results by name: those that are to be compared follow each other."""
        if not (self.cross_fitted and self.test_of_halves):
            return {"train": self.train, "test": self.test}
        return {
            "train, in sample": self.train,
            "test": self.test,
            "train, cross-fitted": self.cross_fitted,
            "test, noise of the same halves": self.test_of_halves,
        }

    @property
    def layers(self) -> dict[str, Estimate]:
        """Layer → ratio of its parts, where both results have a split."""
        return {
            name: independent_ratio(e, self.test.layers[name])
            for name, e in self.train.layers.items()
            if name in self.test.layers
        }

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
            (name, plus_minus(side.value, side.stderr), str(side.n_examples))
            for name, side in self.sides.items()
        ]
        rows.append(("train/test", plus_minus(self.in_sample_ratio.value, self.in_sample_ratio.stderr), ""))
        if self.cross_fitted:
            rows.append(("train/test, cross-fitted", plus_minus(self.ratio, self.ratio_stderr), ""))
        text = table(("", "TPV", "examples"), rows)
        meta = self.train.metadata
        head = "\n".join(
            filter(
                None,
                [meta.get("perturbation"), meta.get("estimator"), meta.get("unit") and f"in {meta['unit']}"],
            )
        )
        explained = [self._why(), f"Cross-fitted, {self.verdict}"] if self.cross_fitted else [self.verdict]
        return "\n\n".join([head, text, *explained])

    __repr__ = __str__

    def _why(self) -> str:
        share = f"{percent(self.leverage)} of" if math.isfinite(self.leverage) else "a part of"
        return (
            f"In sample the fit follows {share} the noise that it is read with (its leverage), and that is "
            "not what unseen inputs see;\n"
            "cross-fitted, the noise of one half of the training inputs is read on the other, against the "
            "same noise on the test inputs\n"
            "(half as many examples hold the network less, so both are larger than the value above)."
        )


def _ratio(a: TPVResult, b: TPVResult) -> Estimate:
    draws = [torch.tensor(side.draws, dtype=torch.float64) if side.draws else None for side in (a, b)]
    return independent_ratio(a.estimate, b.estimate, *draws)
