"""Train TPV against test TPV: points around the line y = x, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate
from tpv.plots.style import ACCENT, WARM, finite, ink, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair = tuple[str, Estimate, Estimate]
"""(label, on training inputs, on test inputs)"""

BAND = 1.5


def plot_train_test(pairs: Sequence[Pair], ax: Axes | None = None) -> Axes:
    """Train TPV against test TPV on logarithmic axes, with the line y = x and the band [x/1.5, 1.5x].

    Args:
        pairs: (label, on training inputs, on test inputs); what is not positive cannot be shown and is left
            out.
        ax: where to draw; by default a new figure.

    Raises:
        TPVError: if nothing is left to show.
        ImportError: without matplotlib.
    """
    shown = positive(pairs)
    if not shown:
        raise TPVError("there is no positive pair of values to plot.")
    ax = ax if ax is not None else new_axes(height=4.6)
    _band(ax, [e.value for _, *both in shown for e in both])
    x, y = [a.value for _, a, _ in shown], [b.value for _, _, b in shown]
    errors = [[finite(e.stderr) for e in side] for side in zip(*[both for _, *both in shown], strict=True)]
    ax.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", color=ACCENT, markersize=5, elinewidth=1)
    ax.set_xlabel("train TPV")
    ax.set_ylabel("test TPV")
    return ax


def positive(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that logarithmic axes can show."""
    return [pair for pair in pairs if pair[1].value > 0 and pair[2].value > 0]


def plot_bars(values: Mapping[str, Estimate], ax: Axes | None = None) -> Axes:
    """Bars of TPV with standard errors, in pairs that are to be compared; those on test inputs have another
    colour.

    Args:
        values: what TPV was evaluated on, such as "train" or "test, noise of the same halves" → its TPV.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    ax = ax if ax is not None else new_axes(height=2.6)
    places = [i + 0.6 * (i // 2) for i in range(len(values))]
    ax.barh(
        places,
        [e.value for e in values.values()],
        xerr=[finite(e.stderr) for e in values.values()],
        color=[WARM if name.startswith("test") else ACCENT for name in values],
        height=0.8,
        error_kw={"elinewidth": 1.2, "ecolor": ink(), "capsize": 3},
    )
    ax.set_yticks(places, [name.replace(", noise of", ",\nnoise of") for name in values])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("TPV")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _band(ax: Axes, values: Sequence[float]) -> None:
    low, high = min(values) / 3, max(values) * 3
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.fill_between(
        [low, high],
        [low / BAND, high / BAND],
        [low * BAND, high * BAND],
        color=ACCENT,
        alpha=0.15,
        linewidth=0,
    )
    ax.plot([low, high], [low, high], color=ink(), linewidth=1)
