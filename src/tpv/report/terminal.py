"""A report as tables for a terminal of 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tpv.common.format import percent, plus_minus
from tpv.report.contents import Entry, Report
from tpv.report.noise_table import show_noise
from tpv.report.tables import plain_table

_LAYERS, _CAUSES = 10, 3


def show(report: Report, to: Console) -> None:
    """Print the report's numbers."""
    to.print(f"{report.title}: {report.trace}, the TPV of unit noise on every weight\n", style="bold")
    to.print(_values((report.headline,)))
    to.print()
    _show_layers(report.headline, to)
    if report.plain:
        to.print(f"\nTPV of each perturbation, in {report.unit}\n", style="bold")
        to.print(_values(report.plain))
    _show_verdicts(report, to)
    show_noise(report, to)
    if split := [entry for entry in report.entries if entry.shown.layers]:
        to.print("\nLayers that cause most of it\n", style="bold")
        to.print(_causes(split))
    if checked := [entry for entry in report.entries if entry.linearity]:
        to.print("\nDoes the first-order approximation hold?\n", style="bold")
        to.print(_linearity(checked))
        examples, draws = report.settings["linearity_examples"], report.settings["linearity_draws"]
        to.print(f"V = E‖Δf − Jδ‖² / E‖Δf‖², on at most {examples} examples and {draws} draws.", style="dim")
    for entry in report.all_entries:
        for note in entry.notes:
            to.print(f"\n{entry.perturbation}: {note}", style="dim")
    for key, said in (
        ("slow_routes", "without an analytic per-layer formula"),
        ("unused_parameters", "without effect on the outputs"),
    ):
        for why, names in report.noted(key).items():
            reason = f" ({why})" if why else ""
            to.print(f"\nParameters {said}{reason}: {', '.join(names)}.", style="dim")


def _values(entries: tuple[Entry, ...]) -> Table:
    paired = any(entry.stability for entry in entries)
    table = plain_table("perturbation", *(("train", "test", "train/test") if paired else ("TPV",)))
    for entry in entries:
        cells = [plus_minus(entry.train.value, entry.train.stderr)]
        if entry.stability:
            test, ratio = entry.stability.test, entry.stability.ratio_estimate
            cells += [plus_minus(test.value, test.stderr), plus_minus(ratio.value, ratio.stderr)]
        table.add_row(entry.perturbation, *cells)
    return table


def _show_layers(entry: Entry, to: Console) -> None:
    result = entry.shown
    if not result.layers:
        to.print(f"No split by layer: {result.no_layers}.", style="dim")
        return
    table = plain_table("layer", "TPV", "share")
    ranked = result.ranked()
    for name, part in ranked[:_LAYERS]:
        table.add_row(name, plus_minus(part.value, part.stderr), percent(result.share(name)))
    to.print(table)
    if rest := ranked[_LAYERS:]:
        to.print(f"and {len(rest)} layers with less", style="dim")


def _show_verdicts(report: Report, to: Console) -> None:
    by_verdict: dict[str, list[str]] = {}
    for entry in (report.headline, *report.plain):
        if entry.stability:
            by_verdict.setdefault(entry.stability.verdict, []).append(entry.perturbation)
    for verdict, names in by_verdict.items():
        to.print(f"\n{'All' if len(by_verdict) == 1 else ', '.join(names)}: {verdict}.")


def _causes(entries: list[Entry]) -> Table:
    table = plain_table("perturbation")
    table.add_column("layers and their shares", overflow="fold")
    rows: dict[str, list[str]] = {}
    for entry in entries:
        ranked = entry.shown.ranked()[:_CAUSES]
        causes = ", ".join(f"{name} {percent(entry.shown.share(name))}" for name, _ in ranked)
        rows.setdefault(causes, []).append(entry.perturbation)
    for causes, perturbations in rows.items():
        table.add_row("\n".join(perturbations), causes)
    return table


def _linearity(entries: list[Entry]) -> Table:
    table = plain_table("perturbation", "V")
    table.add_column("first-order approximation", overflow="fold")
    for entry in entries:
        if entry.linearity:
            table.add_row(
                entry.perturbation,
                plus_minus(entry.linearity.value, entry.linearity.stderr),
                entry.linearity.verdict.removeprefix("first-order approximation "),
            )
    return table
