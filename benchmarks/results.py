"""From measurements to rows: agreement with the exact value, cost per image, cost to 1 %."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.measure import Measurement
from benchmarks.row import Row

EXACT_TOLERANCE, SMALLEST_P, BUSY = 1e-3, 1e-4, 1.3
_PACKAGES = ("tpv", "torch", "curvlinops-for-pytorch", "backpack-for-pytorch", "nngeometry", "numpy")


@dataclass(frozen=True)
class Result:
    """A row as it goes into the table; ``verdict`` is "agrees", "DISAGREES", "unit", or "nothing" for the reason in ``note``.

    ``busy``: the plain pass beside it was slow, so something else was running and the cost is not to be trusted.
    """

    library: str
    method: str
    law: str
    images: int
    verdict: str
    note: str
    value: float | None = None
    relative: float | None = None
    relative_stderr: float | None = None
    cost: float | None = None
    cost_to_one_percent: float | None = None
    peak_mib: float | None = None
    batch: int | None = None
    milliseconds_per_image: float | None = None
    plain_milliseconds_per_image: float | None = None
    busy: bool = False


def failed(row: Row, reason: str) -> Result:
    return Result(row.library, row.method, row.law.value, row.images, "nothing", reason)


def judged(row: Row, m: Measurement, reference: float) -> Result:
    """``reference``: the exact value on the same images."""
    cost = m.seconds / m.plain_seconds
    shared: dict[str, Any] = {
        "cost": cost,
        "peak_mib": m.peak_bytes / 2**20,
        "batch": m.batch or None,
        "milliseconds_per_image": 1000 * m.seconds,
        "plain_milliseconds_per_image": 1000 * m.plain_seconds,
    }
    if math.isnan(m.value):
        return Result(row.library, row.method, "", row.images, "unit", row.note, **shared)
    return Result(
        row.library,
        row.method,
        row.law.value,
        row.images,
        "agrees" if agrees(m, reference) else "DISAGREES",
        row.note,
        value=m.value,
        relative=m.value / reference,
        relative_stderr=m.stderr / reference,
        cost_to_one_percent=cost * row.law.calls(m.call_error, row.images),
        **shared,
    )


def agrees(m: Measurement, reference: float) -> bool:
    """Within 0.1 % if exact (float32, activations at their kinks), else not rejected at p = 1e-4."""
    gap = abs(m.value - reference)
    if m.stderr == 0:
        return gap < EXACT_TOLERANCE * reference
    return bool(2 * student.sf(gap / m.stderr, m.freedom) > SMALLEST_P)


def document(subject: str, plain_batch: int, results: list[Result]) -> dict[str, Any]:
    """Everything that the tables need, ready for JSON."""
    return {
        "subject": subject,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in _PACKAGES},
        "plain_batch": plain_batch,
        "rows": [asdict(result) for result in flagged(results)],
    }


def flagged(results: list[Result]) -> list[Result]:
    """Mark rows whose plain pass took over 1.3 times the quickest one of all rows."""
    times = [r.plain_milliseconds_per_image for r in results]
    quickest = min((t for t in times if t is not None), default=math.inf)
    return [replace(r, busy=t is not None and t > BUSY * quickest) for r, t in zip(results, times, strict=True)]


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
