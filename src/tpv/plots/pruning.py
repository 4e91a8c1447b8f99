"""Accuracy or output change of a pruning against what is left of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from tpv.common.errors import TPVError
from tpv.plots.style import ACCENT, WARM, finite, ink, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (7.6, 3.4)


@dataclass(frozen=True)
class PruningCurve:
    """One quantity at each step.

    Attributes:
        name: for the legend.
        macs_shares, params_shares: of the unpruned network, in [0, 1].
        values, stderrs: of the quantity.
    """

    name: str
    macs_shares: Sequence[float]
    params_shares: Sequence[float]
    values: Sequence[float]
    stderrs: Sequence[float]


def plot_pruning(
    curves: Sequence[PruningCurve], axes: Sequence[Axes] | None = None, *, accuracy: bool
) -> Sequence[Axes]:
    """Accuracy, or E‖Δf‖² on a logarithmic axis, against what is left, in two panels; the unpruned network is
    at 100 %.

    Raises:
        TPVError: if there is nothing to show, or for other than two axes.
        ImportError: without matplotlib.
    """
    if axes is None:
        axes = list(pyplot().subplots(1, 2, figsize=_SIZE, sharey=True, layout="constrained")[1])
    if len(axes) != 2:
        raise TPVError(f"a pruning is drawn on two axes, got {len(axes)}: leave axes out for a new figure.")
    if not any(curve.values for curve in curves):
        raise TPVError("there is no positive value to plot.")
    styles = {"test inputs": (ACCENT, "o-"), "calibration inputs": (WARM, "s-"), "first order": (ink(), ":")}
    for ax, label in zip(axes, ("MACs left", "parameters left"), strict=True):
        for curve in curves:
            colour, format = styles.get(curve.name, (ACCENT, "o-"))
            x = curve.macs_shares if label == "MACs left" else curve.params_shares
            errors = [finite(e) for e in curve.stderrs]
            bars = ax.errorbar(
                x, curve.values, yerr=errors, fmt=format, color=colour, markersize=4, elinewidth=1
            )
            bars.set_label(curve.name)
        ax.axvline(1.0, color=ink(), linewidth=0.8, linestyle=":")
        ax.set_xlabel(label)
        ax.set_xlim(0, 1.04)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        ax.spines[["top", "right"]].set_visible(False)
        if accuracy:
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        else:
            ax.set_yscale("log")
    axes[0].set_ylabel("accuracy on test inputs" if accuracy else "E‖Δf‖²")
    if len(curves) > 1:
        axes[0].legend(frameon=False, fontsize="small")
    return axes


def pruning_svg(curves: Sequence[PruningCurve], *, accuracy: bool, title: str) -> str:
    """The plot as the text of an SVG file, with the title in its metadata."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "tpv", "font.size": 10}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        plot_pruning(curves, figure.subplots(1, 2, sharey=True), accuracy=accuracy)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": title})
    return buffer.getvalue()
