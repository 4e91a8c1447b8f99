"""Why a row of tpv is not ahead, or misses a target: a sentence for a row, filled in with the section's
numbers.
"""

from __future__ import annotations

from typing import Any

_CAUSES = {
    "Exact": "Beside each backward pass squares are taken per example and layer, which sharing the floor's weight gradients cannot give.",
    "Hutchinson(1)": "Beside the backward pass squares are taken per example and layer. Routes are planned and verified on two examples, "
    "and the first 64 get a second probe for the standard error: fixed costs, which weigh on the {n} "
    "examples here and not on thousands.",
    "K backward passes": "The loop makes the same {K} backward passes; batches save only what a pass over one example wastes.",
    "one probe": "The loop uses tpv's own estimator, a random cotangent; batches save only what a pass over one example wastes.",
    "weight-space draws": "One draw for each example is at most {scatter:.0%} off, so that few of them reach 1 % on 2,000 examples.",
    "vmap(grad), one probe": "The same probe. It holds the gradients of every example, {peak:.0f} MiB against {own_peak:.0f} MiB.",
    "vmap(jacrev)": "It holds the Jacobians of a batch, {peak:.0f} MiB against {own_peak:.0f} MiB.",
}
_OTHER = "It takes {peak:.0f} MiB, tpv {own_peak:.0f} MiB."
_BUSY = " Something else was running beside this row."


def cause(section: dict[str, Any], row: dict[str, Any], beside: dict[str, Any]) -> str:
    """For a row and the one that it is compared with."""
    ratio = (row["cost_to_one_percent"] or 0) / row["cost"]
    facts = {
        "K": section["outputs"],
        "n": row["examples"],
        "peak": row["peak_mib"],
        "own_peak": beside["peak_mib"],
        "scatter": 0.01 * (2000 * ratio) ** 0.5,
    }
    return _CAUSES.get(row["method"], _OTHER).format(**facts) + (
        _BUSY if row["busy"] or beside["busy"] else ""
    )
