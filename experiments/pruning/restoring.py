"""What recalibration, re-fitting and measured curves give back, without labels or training."""

from __future__ import annotations

import sys
from typing import Any

from experiments.pruning.baselines import CRITERIA
from experiments.pruning.networks import Network
from experiments.pruning.runs import run
from experiments.pruning.statistics import over_seeds, percents
from tpv._format import table

L2 = CRITERIA["L2 magnitude"]
VARIANTS: dict[str, dict[str, Any]] = {
    "one ranking": {"steps": 9},
    "one ranking, BatchNorm recalibrated": {"steps": 9, "recalibrate": True},
    "one ranking, re-fitted": {"steps": 3, "compensate": True},
    "same share everywhere, L2, re-fitted": {"steps": 1, "allocation": "uniform", "criterion": L2, "compensate": True},
    "same share everywhere, TPV, re-fitted": {"steps": 1, "allocation": "uniform", "compensate": True},
    "curves, not re-fitted": {"allocation": "curves"},
    "curves, L2, re-fitted": {"allocation": "curves", "criterion": L2, "compensate": True},
    "curves, TPV, re-fitted": {"allocation": "curves", "compensate": True},
}


def restored_table(network: Network, keeps: tuple[float, ...], seeds: int, images: int, test: int | None, variants: tuple[str, ...]) -> str:
    """Accuracy of each variant, a column for each share of the MACs."""
    rows = []
    for name in variants:
        cells = []
        for keep in keeps:
            runs = [run(network, name, seed, f"macs={keep}", images, test, **VARIANTS[name]) for seed in range(seeds)]
            last = [steps[-1] for steps in runs]
            print(network.name, name, keep, [s.accuracy.value for s in last], [s.seconds for s in last], file=sys.stderr, flush=True)
            cells.append(over_seeds([s.accuracy for s in last]))
        rows.append((name, *map(percents, cells)))
    return table(("accuracy at MACs of", *(f"{keep:.0%}" for keep in keeps)), rows)
