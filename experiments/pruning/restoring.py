"""What recalibration, re-fitting and measured curves give back, without labels or training."""

from __future__ import annotations

import sys
from typing import Any

from experiments.pruning.baselines import CRITERIA
from experiments.pruning.networks import Network
from experiments.pruning.runs import run
from experiments.pruning.statistics import over_seeds, percents
from tpv.common.format import table
from tpv.common.stats import Estimate

L2 = CRITERIA["L2 magnitude"]
VARIANTS: dict[str, dict[str, Any]] = {
    "one ranking": {"steps": 9},
    "one ranking, BatchNorm recalibrated": {"steps": 9, "recalibrate": True},
    "one ranking, re-fitted": {"steps": 3, "compensate": True},
    "same share everywhere, L2, re-fitted": {
        "steps": 1,
        "allocation": "uniform",
        "criterion": L2,
        "compensate": True,
    },
    "same share everywhere, TPV, re-fitted": {"steps": 1, "allocation": "uniform", "compensate": True},
    "curves, not re-fitted": {"allocation": "curves"},
    "curves, TPV, re-fitted": {"allocation": "curves", "compensate": True},
}


def restored_table(
    network: Network,
    keeps: tuple[float, ...],
    seeds: int,
    images: int,
    test: int | None,
    variants: tuple[str, ...],
) -> str:
    """Accuracy of each variant, a column for each share of the MACs."""
    rows = []
    for name in variants:
        cells: list[list[Estimate]] = [[] for _ in keeps]
        for seed in range(seeds):
            curves: dict[str, dict[int, float]] = {}
            for keep, cell in zip(keeps, cells, strict=True):
                result = run(
                    network, name, seed, f"macs={keep}", images, test, curves=curves, **VARIANTS[name]
                )
                curves, last = result.curves, result.steps[-1]
                print(
                    network.name,
                    name,
                    seed,
                    keep,
                    round(last.accuracy.value, 3),
                    last.seconds,
                    file=sys.stderr,
                    flush=True,
                )
                cell.append(last.accuracy)
        rows.append((name, *(percents(over_seeds(cell)) for cell in cells)))
    return table(("accuracy at MACs of", *(f"{keep:.0%}" for keep in keeps)), rows)
