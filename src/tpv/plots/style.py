"""One style for all plots: axes, colours, and SVG for a page."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT, WARM = "#2f6fb0", "#b5651d"
_INK, _LINE = "#010203", "#040506"
_ON_PAGE = {_INK: "var(--ink)", _LINE: "var(--line)", ACCENT: "var(--accent)", WARM: "var(--warm)"}


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
    return stderr if math.isfinite(stderr) else 0.0


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
