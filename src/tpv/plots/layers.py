"""Bars of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpv.common.stats import Estimate
from tpv.plots.style import ACCENT, finite, ink, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL = 34


def plot_layers(layers: Mapping[str, Estimate], ax: Axes | None = None) -> Axes:
    """Bars of the layers with their standard errors, in the order of the mapping.

    Args:
        layers: layer → its part of TPV.
        ax: where to draw; by default a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    ax = ax if ax is not None else new_axes(height=1.0 + 0.22 * len(layers))
    names, parts = list(layers), list(layers.values())
    ax.barh(
        range(len(names)),
        [e.value for e in parts],
        xerr=[finite(e.stderr) for e in parts],
        color=ACCENT,
        height=0.72,
        error_kw={"elinewidth": 1, "ecolor": ink()},
    )
    common = _common_prefix(names)
    ax.set_yticks(range(len(names)), [_short(n.removeprefix(common)) for n in names], parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("TPV of the layer")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _common_prefix(names: list[str]) -> str:
    """What all names but those of the top level start with, up to a dot, such as "bert."."""
    nested = [name for name in names if "." in name]
    first = nested[0].partition(".")[0] + "." if nested else ""
    return first if all(name.startswith(first) for name in nested) and first else ""


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"
