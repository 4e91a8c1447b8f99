"""Whether the first-order approximation holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tpv.common.format import plus_minus
from tpv.common.stats import Estimate, Moments
from tpv.results.serialization import JSONResult
from tpv.results.verdict import Grade

HOLDS, FAILS = 0.12, 0.36


@dataclass(frozen=True, repr=False)
class LinearityResult(JSONResult):
    """What :func:`tpv.linearity` returns; all numbers come from the same draws.

    Attributes:
        value: V = E‖Δf − Jδ‖² / E‖Δf‖². 0 for a model linear in its weights; at 1 the first-order change Jδ
            says nothing about the change Δf.
        stderr, mc_stderr: of V; from examples and draws, and its Monte-Carlo standard error, from draws with
            the data fixed.
        first_order, first_order_stderr: E‖Jδ‖².
        finite, finite_stderr: E‖Δf‖².
        ratio, ratio_stderr: first_order / finite.
        n_examples: number of examples.
        metadata: as in :class:`tpv.TPVResult`.
    """

    prefix: ClassVar[str] = "linearity"
    derived: ClassVar[tuple[str, ...]] = ("verdict",)

    value: float
    stderr: float
    mc_stderr: float
    first_order: float
    first_order_stderr: float
    finite: float
    finite_stderr: float
    ratio: float
    ratio_stderr: float
    n_examples: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_moments(cls, moments: Moments, metadata: dict[str, Any]) -> LinearityResult:
        """From sums of "gap", "finite" and "first_order"."""
        means = moments.result()
        v, ratio = means.ratio("gap", "finite"), means.ratio("first_order", "finite")
        first, finite = (means.estimates()[name] for name in ("first_order", "finite"))
        return cls(
            *(v.value, v.stderr, v.mc_stderr),
            *(first.value, first.stderr, finite.value, finite.stderr),
            *(ratio.value, ratio.stderr),
            n_examples=means.count,
            metadata=metadata,
        )

    @property
    def estimate(self) -> Estimate:
        """V with its errors, as one object."""
        return Estimate(self.value, self.stderr, self.mc_stderr)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of V from ``stderr``: for other examples and other draws."""
        return self.estimate.interval(level)

    @property
    def holds(self) -> bool:
        """Whether V is at most 0.12, where first order and finite differences agreed within 3 %."""
        return self.value <= HOLDS

    @property
    def verdict(self) -> str:
        """In plain words, what V means for the first-order number."""
        return self._judgement[1]

    @property
    def grade(self) -> Grade:
        """The verdict in one word."""
        return self._judgement[0]

    @property
    def _judgement(self) -> tuple[Grade, str]:
        if not math.isfinite(self.value):
            return "unclear", "cannot tell: the displacement changes no output"
        margin = 2 * self.stderr if math.isfinite(self.stderr) else 0.0
        low, high = self.value - margin, self.value + margin
        if high <= HOLDS:
            return "good", "first-order approximation holds"
        if low <= HOLDS:
            return "unclear", f"cannot tell: V is within two standard errors of {HOLDS}"
        if high <= FAILS:
            return "unclear", f"first-order approximation borderline{self._instead()}"
        if low <= FAILS:
            return "unclear", f"first-order approximation borderline or invalid{self._instead()}"
        return "bad", f"first-order approximation invalid{self._instead()}"

    def _instead(self) -> str:
        """What measures the finite value of this perturbation."""
        instead = self.metadata.get("finite_by", "")
        return f": use {instead}" if instead else ""

    def __str__(self) -> str:
        return (
            f"V {plus_minus(self.value, self.stderr)}: {self.verdict}\n"
            f"first order {plus_minus(self.first_order, self.first_order_stderr)}, "
            f"finite {plus_minus(self.finite, self.finite_stderr)}, ratio "
            f"{plus_minus(self.ratio, self.ratio_stderr)}\n"
            f"{self.metadata.get('perturbation', '')}, {self.n_examples} examples, "
            f"{self.metadata.get('estimator', '')}"
        )

    __repr__ = __str__
