"""From measurements to rows: agreement with the reference, cost per example, cost to 1 %."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import t as student

from benchmarks.measure import Measurement
from benchmarks.reference import Reference
from benchmarks.row import Row

EXACT_TOLERANCE, SMALLEST_P, BUSY = 1e-3, 1e-4, 1.3


@dataclass(frozen=True)
class Result:
    """A row of the table; ``verdict`` is "agrees", "DISAGREES", "cost only", or "nothing" for the reason in
    ``note``.

    ``busy``: the plain pass measured alongside was slow, so something else was running and the cost is not
    reliable.
    """

    library: str
    method: str
    convergence: str
    examples: int
    verdict: str
    note: str
    value: float | None = None
    relative: float | None = None
    relative_stderr: float | None = None
    cost: float | None = None
    cost_to_one_percent: float | None = None
    peak_mib: float | None = None
    batch: int | None = None
    milliseconds: float | None = None
    plain_milliseconds: float | None = None
    busy: bool = False


def failed(row: Row, reason: str) -> Result:
    return Result(
        row.library,
        row.method,
        row.convergence.value,
        row.examples,
        "nothing",
        "; ".join(filter(None, (reason, row.note))),
    )


def judged(row: Row, m: Measurement, reference: Reference) -> Result:
    """``reference``: the value on the same examples."""
    cost = m.seconds / m.plain_seconds
    shared: dict[str, Any] = {
        "cost": cost,
        "peak_mib": m.peak_bytes / 2**20,
        "batch": m.batch or None,
        "milliseconds": 1000 * m.seconds,
        "plain_milliseconds": 1000 * m.plain_seconds,
    }
    if math.isnan(m.value):
        return Result(row.library, row.method, "", row.examples, "cost only", row.note, **shared)
    return Result(
        row.library,
        row.method,
        row.convergence.value,
        row.examples,
        "agrees" if agrees(m, reference) else "DISAGREES",
        row.note,
        value=m.value,
        relative=m.value / reference.value,
        relative_stderr=math.hypot(m.stderr, reference.stderr) / reference.value,
        cost_to_one_percent=cost * row.convergence.calls(m.call_error, row.examples),
        **shared,
    )


def agrees(m: Measurement, reference: Reference) -> bool:
    """Within 0.1 % if both are exact (float32, activations at their kinks), else not rejected at p = 1e-4."""
    gap, error = abs(m.value - reference.value), math.hypot(m.stderr, reference.stderr)
    if error == 0:
        return gap < EXACT_TOLERANCE * reference.value
    return bool(
        2 * student.sf(gap / error, m.freedom * (error / m.stderr) ** 4 if m.stderr else math.inf)
        > SMALLEST_P
    )


def flagged(results: list[Result]) -> list[Result]:
    """Mark rows whose plain pass took over 1.3 times as long as the fastest plain pass of all rows."""
    times = [r.plain_milliseconds for r in results]
    fastest = min((t for t in times if t is not None), default=math.inf)
    return [
        replace(r, busy=t is not None and t > BUSY * fastest) for r, t in zip(results, times, strict=True)
    ]
