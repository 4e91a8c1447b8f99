"""Label noise in the terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from tpv.common.format import percent, plus_minus
from tpv.report.contents import Entry, Report
from tpv.report.noise import CROSS_FITTED, IN_SAMPLE, WHAT, noise_unit, short
from tpv.report.tables import plain_table


def show_noise(report: Report, to: Console) -> None:
    """Print what label noise changes, or why it is left out."""
    if not (report.noise or report.noise_left_out):
        return
    to.print("\nLabel noise\n", style="bold")
    to.print(WHAT, style="dim")
    if report.noise_left_out:
        to.print(f"It is left out here: {report.noise_left_out}")
    for entry in report.noise:
        _show(entry, to)
    if report.noise:
        to.print(
            " ".join(
                [IN_SAMPLE, *([CROSS_FITTED] if any(entry.stability for entry in report.noise) else [])]
            ),
            style="dim",
        )


def _show(entry: Entry, to: Console) -> None:
    metadata, both, shown = entry.train.metadata, entry.stability, entry.shown
    to.print(f"\n{entry.perturbation}\nTPV in {noise_unit(entry.shown)}\n")
    to.print(_values(entry))
    examples, outputs = metadata["train_examples"], metadata["train_outputs"]
    to.print(
        f"\nstd {metadata['noise_std']:.3g} on {outputs:,} outputs of {examples:,} training inputs, fit "
        f"{short(metadata['fit'])}"
    )
    if shown.spectrum:
        freedom = shown.spectrum.degrees_of_freedom
        to.print(
            f"{freedom:.3g} degrees of freedom: the fit reproduces {percent(shown.leverage)} of its own "
            "noise (leverage)"
        )
    verdict = (
        both.verdict
        if both
        else "there are no test inputs, so this is in sample only and does not estimate TPV on unseen inputs"
    )
    to.print(f"{'Cross-fitted: ' if both and both.cross_fitted else ''}{verdict}.\n")


def _values(entry: Entry) -> Table:
    table = plain_table("", "TPV", "one draw", "examples")
    for name, side in entry.sides.items():
        draw = f"± {side.draw_std:.2g}" if math.isfinite(side.draw_std) else ""
        table.add_row(name, plus_minus(side.value, side.stderr), draw, f"{side.n_examples:,}")
    if both := entry.stability:
        ratios = [("train/test, in sample", both.in_sample_ratio)]
        ratios += [("train/test, cross-fitted", both.ratio_estimate)] if both.cross_fitted else []
        for name, ratio in ratios:
            table.add_row(name, plus_minus(ratio.value, ratio.stderr), "", "")
    return table
