"""The scaling as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HALF_WIDTH = 3.2


def plot(axes: list[dict[str, Any]], path: Path) -> None:
    """One panel for each axis, milliseconds per example on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "tpv", "svg.fonttype": "none", "font.size": 8}):
        figure, panels = plt.subplots(
            1, len(axes), figsize=(_HALF_WIDTH * len(axes), 3), layout="constrained", squeeze=False
        )
        for panel, axis in zip(panels[0], axes, strict=True):
            _panel(panel, axis)
        panels[0, 0].set_ylabel("milliseconds per example")
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
        )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(panel: Any, axis: dict[str, Any]) -> None:
    x = [point[axis["axis"]] for point in axis["points"]]
    for name in axis["points"][0]["methods"]:
        panel.loglog(x, [point["methods"][name] for point in axis["points"]], "o-", ms=3, label=name)
    panel.loglog(
        x, [point["plain"] for point in axis["points"]], "k--", lw=1, label="plain forward + backward"
    )
    panel.set_xticks(x, [f"{value:,}" for value in x])
    panel.minorticks_off()
    panel.set_title(f"{axis['axis']}: {axis['meaning'].partition(',')[0]} ({axis['device']})")
