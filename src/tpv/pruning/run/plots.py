"""Plots of prunings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate
from tpv.plots.style import ACCENT, WARM, finite, ink, pyplot
from tpv.pruning.run.summary import unpruned_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tpv.pruning.run.result import PruningResult

_SIDES = (("macs_share", "MACs left"), ("params_share", "parameters left"))


def plot_steps(result: PruningResult, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Accuracy, or E‖Δf‖² on a logarithmic axis, against what is left, in two panels; the unpruned network is
    at 100 %.

    Raises:
        TPVError: if there is nothing to show, or for other than two axes.
        ImportError: without matplotlib.
    """
    axes = new_pair() if axes is None else list(axes)
    if len(axes) != 2:
        raise TPVError(f"a pruning is drawn on two axes, got {len(axes)}: leave axes out for a new figure.")
    curves = _curves(result)
    if not any(points for points, _, _ in curves.values()):
        raise TPVError("there is no positive value to plot.")
    for ax, (share, label) in zip(axes, _SIDES, strict=True):
        for name, (points, colour, format) in curves.items():
            x = [1.0 if step is None else getattr(result.steps[step], share) for step, _ in points]
            errors = [finite(e.stderr) for _, e in points]
            drawn = ax.errorbar(
                x,
                [e.value for _, e in points],
                yerr=errors,
                fmt=format,
                color=colour,
                markersize=4,
                elinewidth=1,
            )
            drawn.set_label(name)
        ax.axvline(1.0, color=ink(), linewidth=0.8, linestyle=":")
        ax.set_xlabel(label)
        ax.set_xlim(0, 1.04)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        ax.spines[["top", "right"]].set_visible(False)
    _finish_y(axes, by_accuracy="accuracy" in curves, several=len(curves) > 1)
    return axes


Curves = dict[str, tuple[list[tuple[int | None, Estimate]], str, str]]
"""Name → (step or None for the unpruned network, value), colour and form."""


def _curves(result: PruningResult) -> Curves:
    steps = list(enumerate(result.steps))
    if accuracies := [(i, step.accuracy) for i, step in steps if step.accuracy]:
        before = unpruned_accuracy(result)
        return {"accuracy": ([*([(None, before)] if before else []), *accuracies], ACCENT, "o-")}
    tested = [(i, step.moved_test) for i, step in steps if step.moved_test and step.moved_test.value > 0]
    found: Curves = {"test inputs": (list(tested), ACCENT, "o-")} if tested else {}
    found["calibration inputs"] = ([(i, step.moved) for i, step in steps if step.moved.value > 0], WARM, "s-")
    found["first order"] = (
        [(i, step.predicted) for i, step in steps if step.predicted.value > 0],
        ink(),
        ":",
    )
    return {name: curve for name, curve in found.items() if curve[0]}


def _finish_y(axes: Sequence[Axes], *, by_accuracy: bool, several: bool) -> None:
    for ax in axes:
        if by_accuracy:
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        else:
            ax.set_yscale("log")
    axes[0].set_ylabel("accuracy on test inputs" if by_accuracy else "E‖Δf‖²")
    if several:
        axes[0].legend(frameon=False, fontsize="small")


def new_pair() -> list[Axes]:
    """Two axes of a new figure that share y.

    Raises:
        ImportError: without matplotlib.
    """
    return list(pyplot().subplots(1, 2, figsize=(7.6, 3.4), sharey=True, layout="constrained")[1])


def svg_file(result: PruningResult) -> str:
    """The plot as the text of an SVG file."""
    from io import StringIO

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "tpv", "font.size": 10}):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        plot_steps(result, figure.subplots(1, 2, sharey=True))
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
