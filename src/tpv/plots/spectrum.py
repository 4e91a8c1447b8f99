"""Plots of label noise: the sides that are compared, and the kernel's directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpv.common.errors import TPVError
from tpv.plots.layers import ACCENT, WARM, finite, ink, new_axes
from tpv.results import Spectrum, StabilityResult, TPVResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sides(result: StabilityResult | TPVResult) -> list[tuple[str, TPVResult]]:
    """What label noise was read on, by name: those that are to be compared follow each other."""
    return (
        list(result.sides.items()) if isinstance(result, StabilityResult) else [("train, in sample", result)]
    )


def plot_sides(result: StabilityResult, ax: Axes | None = None) -> Axes:
    """Bars of TPV with standard errors: in sample against test, and cross-fitted against test with the noise
    of the same halves.

    Args:
        result: of label noise.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    shown = sides(result)
    ax = ax if ax is not None else new_axes(height=2.6)
    places = [i + 0.6 * (i // 2) for i in range(len(shown))]
    bars = ax.barh(
        places,
        [side.value for _, side in shown],
        xerr=[finite(side.stderr) for _, side in shown],
        color=[WARM if name.startswith("test") else ACCENT for name, _ in shown],
        height=0.8,
        error_kw={"elinewidth": 1.2, "ecolor": ink(), "capsize": 3},
    )
    assert len(bars) == len(shown)
    ax.set_yticks(places, [name.replace(", noise of", ",\nnoise of") for name, _ in shown])
    ax.set_ylim(places[-1] + 0.6, -0.6)
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("TPV")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_spectrum(spectrum: Spectrum, ax: Axes | None = None) -> Axes:
    """Eigenvalues by rank on logarithmic axes; on a second axis from 0 to 1 the part followed and the
    cumulative share of the value.

    Eigenvalues that rounding decides, below 1e-7 of the largest, are left out of the picture.

    Args:
        spectrum: of a result by :class:`tpv.Exact`.
        ax: where to draw; by default a new figure.

    Returns:
        The axes of the eigenvalues.

    Raises:
        TPVError: if all eigenvalues are 0.
        ImportError: without matplotlib.
    """
    shown = sum(k > 1e-7 * spectrum.eigenvalues[0] for k in spectrum.eigenvalues)
    if not shown:
        raise TPVError("there is no eigenvalue above 0 to plot.")
    ax = ax if ax is not None else new_axes(height=4.6)
    rank = range(1, shown + 1)
    marker = "." if shown == 1 else ""
    (k,) = ax.plot(
        rank, spectrum.eigenvalues[:shown], color=ink(), linewidth=1.2, linestyle=":", marker=marker
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="direction of the kernel, by falling eigenvalue",
        ylabel="eigenvalue",
    )
    parts = ax.twinx()
    (followed,) = parts.plot(rank, spectrum.followed[:shown], color=ACCENT, linewidth=1.8, marker=marker)
    (share,) = parts.plot(
        rank, spectrum.cumulative[:shown], color=WARM, linewidth=1.8, linestyle="--", marker=marker
    )
    parts.set(ylim=(0, 1.02), ylabel="part, from 0 to 1")
    for axes in (ax, parts):
        axes.spines["top"].set_visible(False)
    names = ["eigenvalue (left)", "part of the noise followed, kφ (right)", "cumulative share of TPV (right)"]
    ax.legend(
        [k, followed, share],
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        fontsize="small",
    )
    return ax
