"""Plots of results, for a notebook or as SVG for the page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate
from tpv.results import TPVResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair = tuple[str, Estimate, Estimate]

ACCENT, WARM, BAND = "#2f6fb0", "#b5651d", 1.5
_INK, _LINE = "#010203", "#040506"
_ON_PAGE = {_INK: "var(--ink)", _LINE: "var(--line)", ACCENT: "var(--accent)", WARM: "var(--warm)"}
_LABEL = 34


def plot_layers(result: TPVResult, ax: Axes | None = None) -> Axes:
    """Bars of the layers with their standard errors, in the model's order.

    Args:
        result: one with a split by layer.
        ax: where to draw; by default a new figure.

    Raises:
        TPVError: if the result has no split by layer, with the reason.
        ImportError: without matplotlib.
    """
    if not result.layers:
        hint = " Plot result.spectrum instead." if result.spectrum else ""
        raise TPVError(f"there are no layers to plot: {result.no_layers}.{hint}")
    ax = ax if ax is not None else new_axes(height=1.0 + 0.22 * len(result.layers))
    names, parts = list(result.layers), list(result.layers.values())
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


def plot_train_test(pairs: Sequence[Pair], ax: Axes | None = None) -> Axes:
    """Training value against test value on logarithmic axes, with the line y = x and the band [x/1.5, 1.5x].

    Args:
        pairs: (label, on train, on test); what is not positive cannot be shown and is left out. Labels are
            written beside up to ten points.
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
    x, y = [a.value for _, a, _ in shown], [b.value for *_, b in shown]
    errors = [[finite(e.stderr) for e in side] for side in zip(*[both for _, *both in shown], strict=True)]
    ax.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", color=ACCENT, markersize=5, elinewidth=1)
    ax.set_xlabel("TPV on training inputs")
    ax.set_ylabel("TPV on test inputs")
    return ax


def positive(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that logarithmic axes can show."""
    return [pair for pair in pairs if pair[1].value > 0 and pair[2].value > 0]


def svg(draw: Callable[[Axes], object], label: str, width: float = 5.2, height: float = 4.6) -> str:
    """A drawing as an SVG element for a page that defines ``--ink``, ``--line``, ``--accent`` and ``--warm``.

    Args:
        draw: draws on the axes it gets.
        label: the text for those who do not see it.
        width: in inches.
        height: in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    )
    style |= {"grid.color": _LINE, "svg.fonttype": "none", "svg.hashsalt": label, "font.size": 10}
    with rc_context(style), warnings.catch_warnings(action="ignore"):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inlined(buffer.getvalue(), label)


def _inlined(text: str, label: str) -> str:
    """Without prologue, metadata, fixed size and names that other drawings on the page use too."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    view = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{escape(label)}" {view.group() if view else ""}>'
    text = re.sub(r"<svg\b.*?>", lambda _: opening, text, count=1, flags=re.DOTALL)
    for colour, variable in _ON_PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("xlink:href", "href")


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


def new_axes(height: float) -> Axes:
    """Axes of a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    axes: Axes = pyplot().subplots(figsize=(6.4, height), layout="constrained")[1]
    return axes


def pyplot() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'tpv[plot]'") from error
    return pyplot


def ink() -> str:
    """The colour of text."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def finite(stderr: float) -> float:
    """An error that can be drawn: 0 where it is unknown."""
    return stderr if stderr == stderr else 0.0


def _common_prefix(names: list[str]) -> str:
    """What all names but those of the top level start with, up to a dot, such as "bert."."""
    nested = [name for name in names if "." in name]
    first = nested[0].partition(".")[0] + "." if nested else ""
    return first if all(name.startswith(first) for name in nested) and first else ""


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"
