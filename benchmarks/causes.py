"""Why a row of tpv is not ahead or misses a target: one sentence a row, with the section's numbers."""

from __future__ import annotations

from typing import Any

_BATCHES = "batches save only what a pass over one example wastes."
_MEMORY = "{peak:.0f} MiB against {own_peak:.0f} MiB"
_CAUSES = {
    "Exact": "For each backward pass, squared gradients are computed per example and layer; the plain "
    "pass computes only the batch's weight gradients.",
    "Hutchinson(1)": "In addition to the backward pass, squared gradients are computed per example and "
    "layer. Planning and verifying the routes on two examples and a second probe for a few (for the "
    "standard error) are fixed costs, which weigh on the {n} examples here and not on thousands.",
    "K backward passes": f"The loop makes the same {{K}} backward passes; {_BATCHES}",
    "one probe": f"The loop uses tpv's own estimator, a random cotangent; {_BATCHES}",
    "weight-space draws": "One draw per example is at most {scatter:.0%} off, so that few of them reach 1 % "
    "on 2,000 examples.",
    "vmap(grad), one probe": f"The same probe. It holds the gradients of every example, {_MEMORY}.",
    "vmap(jacrev)": f"It holds the Jacobians of a batch, {_MEMORY}.",
}
_OTHER = "It takes {peak:.0f} MiB, tpv {own_peak:.0f} MiB."
_BUSY = " Something else was running at the same time."


def cause(section: dict[str, Any], row: dict[str, Any], other: dict[str, Any]) -> str:
    """The sentence for a row and the row that it is compared with."""
    ratio = (row["cost_to_one_percent"] or 0) / row["cost"]
    numbers = {
        "K": section["outputs"],
        "n": row["examples"],
        "peak": row["peak_mib"],
        "own_peak": other["peak_mib"],
        "scatter": 0.01 * (2000 * ratio) ** 0.5,
    }
    return _CAUSES.get(row["method"], _OTHER).format(**numbers) + (
        _BUSY if row["busy"] or other["busy"] else ""
    )
