"""Directions of a kernel: eigenvalues, what a fit reproduces of each, and what they contribute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpv.common.errors import TPVError
from tpv.plots.style import ACCENT, WARM, ink, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrum(
    eigenvalues: Sequence[float], fitted: Sequence[float], cumulative: Sequence[float], ax: Axes | None = None
) -> Axes:
    """Eigenvalues by rank on logarithmic axes; on a second axis from 0 to 1 the share of the noise that the
    fit reproduces and the cumulative share of TPV.

    Eigenvalues that rounding decides, below 1e-7 of the largest, are left out of the picture.

    Args:
        eigenvalues: of the kernel, largest first.
        fitted: the share of the noise along each direction that the fit reproduces.
        cumulative: the share of TPV that the directions up to each one carry.
        ax: where to draw; by default a new figure.

    Returns:
        The axes of the eigenvalues.

    Raises:
        TPVError: if all eigenvalues are 0.
        ImportError: without matplotlib.
    """
    shown = sum(k > 1e-7 * eigenvalues[0] for k in eigenvalues)
    if not shown:
        raise TPVError("there is no eigenvalue above 0 to plot.")
    ax = ax if ax is not None else new_axes(height=4.6)
    rank = range(1, shown + 1)
    marker = "." if shown == 1 else ""
    (k,) = ax.plot(rank, eigenvalues[:shown], color=ink(), linewidth=1.2, linestyle=":", marker=marker)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="direction of the kernel, by falling eigenvalue",
        ylabel="eigenvalue",
    )
    parts = ax.twinx()
    (reproduced,) = parts.plot(rank, fitted[:shown], color=ACCENT, linewidth=1.8, marker=marker)
    (share,) = parts.plot(rank, cumulative[:shown], color=WARM, linewidth=1.8, linestyle="--", marker=marker)
    parts.set(ylim=(0, 1.02), ylabel="share, from 0 to 1")
    for axes in (ax, parts):
        axes.spines["top"].set_visible(False)
    names = ["eigenvalue (left)", "share of noise fitted, kφ (right)", "cumulative share of TPV (right)"]
    ax.legend(
        [k, reproduced, share],
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        fontsize="small",
    )
    return ax
