"""Whether first order is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tpv.common.format import plus_minus
from tpv.common.stats import Moments
from tpv.results.serialization import JSONResult

HOLDS, FAILS = 0.12, 0.36


@dataclass(frozen=True, repr=False)
class LinearityResult(JSONResult):
    """What :func:`tpv.linearity` returns; all numbers come from the same draws.

    Attributes:
        value: V = E‖Δf − Jδ‖² / E‖Δf‖². 0 for a model linear in its weights; 1 means that the first order
            says nothing.
        stderr, mc_stderr: of V; from examples and draws, from draws alone.
        first_order, first_order_stderr: E‖Jδ‖².
        finite, finite_stderr: E‖Δf‖².
        quotient, quotient_stderr: first_order / finite.
        n_examples: number of examples.
        metadata: as in :class:`tpv.TPVResult`.
    """

    value: float
    stderr: float
    mc_stderr: float
    first_order: float
    first_order_stderr: float
    finite: float
    finite_stderr: float
    quotient: float
    quotient_stderr: float
    n_examples: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_moments(cls, moments: Moments, metadata: dict[str, Any]) -> LinearityResult:
        """From sums of "gap", "finite" and "first_order"."""
        means = moments.result()
        v, quotient = means.ratio("gap", "finite"), means.ratio("first_order", "finite")
        first, finite = (means.estimates()[name] for name in ("first_order", "finite"))
        return cls(
            *(v.value, v.stderr, v.mc_stderr),
            *(first.value, first.stderr, finite.value, finite.stderr),
            *(quotient.value, quotient.stderr),
            n_examples=means.count,
            metadata=metadata,
        )

    @property
    def holds(self) -> bool:
        """Whether V is at most 0.12, where first order and finite differences agreed within 3 %."""
        return self.value <= HOLDS

    @property
    def verdict(self) -> str:
        """In plain words, what V means for the first-order number."""
        if not math.isfinite(self.value):
            return "cannot tell: the displacement changes no output"
        margin = 2 * self.stderr if math.isfinite(self.stderr) else 0.0
        low, high = self.value - margin, self.value + margin
        if high <= HOLDS:
            return "first order holds"
        if low <= HOLDS:
            return f"cannot tell: V is within two standard errors of {HOLDS}"
        words = "wavers" if high <= FAILS else "wavers or fails" if low <= FAILS else "fails"
        return f"first order {words}{self._instead()}"

    def _instead(self) -> str:
        """What measures the finite value of this perturbation."""
        law = str(self.metadata.get("perturbation", ""))
        return (
            "" if "Retraining(" in law else ": use Retraining" if "LabelNoise(" in law else ": use MonteCarlo"
        )

    def __str__(self) -> str:
        return (
            f"V {plus_minus(self.value, self.stderr)}: {self.verdict}\n"
            f"first order {plus_minus(self.first_order, self.first_order_stderr)}, "
            f"finite {plus_minus(self.finite, self.finite_stderr)}, quotient "
            f"{plus_minus(self.quotient, self.quotient_stderr)}\n"
            f"{self.metadata.get('perturbation', '')}, {self.n_examples} examples, "
            f"{self.metadata.get('estimator', '')}"
        )

    __repr__ = __str__
