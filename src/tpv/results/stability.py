"""Training inputs against unseen inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tpv.common.format import percent, plus_minus, table
from tpv.common.stats import Estimate, independent_ratio
from tpv.results.serialization import JSONResult
from tpv.results.tpv import TPVResult
from tpv.results.verdict import Grade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FACTOR = 1.5


@dataclass(frozen=True, repr=False)
class StabilityResult(JSONResult):
    """What :func:`tpv.stability` returns.

    For :class:`tpv.LabelNoise` ``train`` is in sample: the fit has reproduced part of the very noise that it
    is evaluated with, by its leverage, and ``train`` does not estimate ``test``. Whether train TPV is a good
    proxy is seen from ``cross_fitted``, the noise of one half of the training inputs evaluated on the other
    half: it estimates ``test_of_halves``, the noise of the same halves evaluated on the test inputs. Both are
    larger than ``test``, because half as many examples constrain the network less.

    Attributes:
        train, test: the two results.
        cross_fitted, test_of_halves: for label noise, else None.
    """

    prefix: ClassVar[str] = "stability"
    derived: ClassVar[tuple[str, ...]] = ("ratio", "ratio_stderr", "verdict")

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
        """For label noise, degrees of freedom over dimensions: the share of its own noise that the fit
        reproduces; nan where not computed.
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

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of ``ratio`` from ``ratio_stderr``."""
        return self.ratio_estimate.interval(level)

    @property
    def verdict(self) -> str:
        """In plain words, whether train TPV is a good proxy for test TPV."""
        return self._judgement[1]

    @property
    def grade(self) -> Grade:
        """The verdict in one word."""
        return self._judgement[0]

    @property
    def _judgement(self) -> tuple[Grade, str]:
        ratio, error = self.ratio, self.ratio_stderr
        if not math.isfinite(error):
            return "unclear", "cannot tell: a single draw has no standard error"
        low, high = ratio - 2 * error, ratio + 2 * error
        if low >= 1 / _FACTOR and high <= _FACTOR:
            return "good", f"train TPV is a good proxy for test TPV: within a factor of {_FACTOR}"
        if high < 1 / _FACTOR or low > _FACTOR:
            return (
                "bad",
                f"train TPV is not a good proxy for test TPV: off by more than a factor of {_FACTOR}",
            )
        return (
            "unclear",
            f"cannot tell: the ratio ± 2 standard errors lies partly outside a factor of {_FACTOR}",
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Train TPV against test TPV of every layer, on logarithmic axes around the line y = x; bars of the
        totals where there is no split by layer, and for label noise. Needs ``pip install 'tpv[plot]'``.

        Args:
            ax: where to draw; by default a new figure.
        """
        from tpv.plots.train_test import plot_bars, plot_train_test, positive

        pairs = positive([(n, self.train.layers[n], self.test.layers[n]) for n in self.layers])
        if self.cross_fitted or not pairs:
            return plot_bars({name: side.estimate for name, side in self.sides.items()}, ax)
        return plot_train_test(pairs, ax)

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
        explained = [self._why(), f"Cross-fitted: {self.verdict}"] if self.cross_fitted else [self.verdict]
        return "\n\n".join([head, text, *explained])

    __repr__ = __str__

    def _why(self) -> str:
        share = percent(self.leverage) if math.isfinite(self.leverage) else "a part"
        return (
            f"In sample the fit reproduces {share} of the noise that it is evaluated with (its leverage),\n"
            "which unseen inputs do not see; cross-fitted, the noise of one half of the training inputs is\n"
            "evaluated on the other half, against the same noise on the test inputs (half as many examples\n"
            "constrain the network less, so these two TPVs are larger than the one of the row 'test')."
        )


def _ratio(a: TPVResult, b: TPVResult) -> Estimate:
    draws = [torch.tensor(side.draws, dtype=torch.float64) if side.draws else None for side in (a, b)]
    return independent_ratio(a.estimate, b.estimate, *draws)
