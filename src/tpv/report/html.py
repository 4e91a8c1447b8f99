"""A report as one self-contained page."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tpv.common.format import percent, plus_minus
from tpv.common.stats import Estimate
from tpv.plots.style import svg
from tpv.plots.train_test import Pair, plot_bars, plot_train_test, positive
from tpv.report.contents import Entry, Report
from tpv.report.noise import CROSS_FITTED, IN_SAMPLE, WHAT, noise_unit, short
from tpv.results import LinearityResult, TPVResult

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page(report: Report) -> str:
    """The page; it loads nothing from elsewhere, and all text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pm": _pm,
        "number": number,
        "sentence": _sentence,
        "percent": percent,
        "trace": _trace,
        "breakable": _breakable,
    }
    environment.filters |= {"short": short}
    environment.globals |= {
        "plus_minus": plus_minus,
        "noise_unit": noise_unit,
        "noise_plots": _noise_plots,
        "isfinite": math.isfinite,
    }
    environment.globals |= {"what": WHAT, "in_sample": IN_SAMPLE, "cross_fitted": CROSS_FITTED}
    return environment.get_template("page.html.jinja").render(
        report=report, top=report.headline.shown, plots=_plots(report)
    )


def number(text: str) -> str:
    """'(1.2 ± 0.1)e-5' as '(1.2 ± 0.1) × 10⁻⁵'."""
    return re.sub(r"\)e(-?\d+)$", lambda m: f") × 10{m[1].translate(_SUPERSCRIPTS)}", text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _trace(text: str) -> Markup:
    return Markup(escape(text).replace("H_eff", Markup("H<sub>eff</sub>")))


def _breakable(name: str) -> Markup:
    """A name that may be broken after a dot, a comma or an opening parenthesis, and nowhere else."""
    return Markup(re.sub(r"([.(]|, )", r"\1<wbr>", str(escape(name))))


def _pm(estimate: Estimate | TPVResult | LinearityResult) -> str:
    return number(plus_minus(estimate.value, estimate.stderr))


def _plots(report: Report) -> dict[str, Any]:
    """The drawings that there are numbers for."""
    drawings: dict[str, Any] = dict.fromkeys(("totals", "by_layer", "layers"))
    pairs = [p for entry in (report.headline, *report.plain) for p in _totals(entry)]
    for name, what, shown in (
        ("totals", "perturbations", pairs),
        ("by_layer", "layers", _layers(report.headline)),
    ):
        if shown := positive(shown):
            label = (
                f"Train against test on logarithmic axes: {len(shown)} {what} around the line y = x. "
                "The numbers are in the table."
            )
            drawings[name] = Markup(svg(functools.partial(plot_train_test, shown), label))
    layers = report.headline.shown.layers
    if layers:
        label = f"Bars of TPV for the {len(layers)} layers in the model's order. The numbers are in a table."
        drawings["layers"] = Markup(svg(report.headline.shown.plot, label, height=0.8 + 0.2 * len(layers)))
    return drawings


def _noise_plots(entry: Entry) -> list[tuple[Markup, str]]:
    """Drawings of label noise with their captions."""
    drawings = []
    if entry.stability:
        label = (
            f"Bars of the TPV of {entry.perturbation} on training and test inputs. "
            "The numbers are in the table."
        )
        draw = functools.partial(plot_bars, {name: side.estimate for name, side in entry.sides.items()})
        caption = "Compare within each pair. Lines are standard errors."
        drawings.append((Markup(svg(draw, label, height=3.2)), caption))
    spectrum = entry.shown.spectrum
    if spectrum and any(spectrum.eigenvalues):
        label = (
            f"Curves over the directions of the kernel for {entry.perturbation}: eigenvalue, share of the "
            f"noise that the fit reproduces, cumulative share of TPV. {spectrum}."
        )
        drawings.append((Markup(svg(spectrum.plot, label, width=5.6, height=4.2)), f"{spectrum}."))
    return drawings


def _totals(entry: Entry) -> list[Pair]:
    both = entry.stability
    return [(entry.perturbation, both.train.estimate, both.test.estimate)] if both else []


def _layers(entry: Entry) -> list[Pair]:
    both = entry.stability
    return (
        [
            (name, e, both.test.layers[name])
            for name, e in both.train.layers.items()
            if name in both.test.layers
        ]
        if both
        else []
    )
