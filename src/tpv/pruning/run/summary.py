"""A pruning as text, within 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from tpv.common.format import percent, plus_minus, table
from tpv.common.stats import Estimate

if TYPE_CHECKING:
    from tpv.pruning.run.result import PruningResult, PruningStep

_WIDTH = 80
Show = Callable[[float, float], str]
_HEADER = ("step", "MACs", "params", "predicted", "moved", "on test", "accuracy")


def summary(result: PruningResult) -> str:
    """The steps, widths before and after, and what was left alone and why."""
    asked = [f"{result.metadata[key]}" for key in ("target", "criterion") if key in result.metadata]
    asked += [f"allocation {result.metadata['allocation']}"] if "allocation" in result.metadata else []
    asked += [
        words
        for key, words in (("compensate", "re-fitted"), ("recalibrate", "recalibrated"))
        if result.metadata.get(key)
    ]
    parts = [_wrapped(", ".join(map(_glued, asked)))] if asked else []
    parts += [steps_table(result), _wrapped(_legend(result))]
    if result.steps:
        parts.append(_wrapped("Widths: " + ", ".join(map(_glued, _widths(result)))))
        unit, share = result.metadata.get("target_unit"), result.steps[-1].cost_share
        parts += (
            [_wrapped(f"Left of {unit}: {percent(share)}.")] if unit not in (None, "macs", "params") else []
        )
    if replaced := result.metadata.get("replaced_shortcuts"):
        parts.append(
            _wrapped(
                f"Padding shortcuts that became convolutions with the same outputs: {', '.join(replaced)}."
            )
        )
    reasons: dict[str, list[str]] = {}
    for name, why in result.excluded.items():
        reasons.setdefault(why.rstrip("."), []).append(name)
    parts += [_wrapped(f"Left alone: {', '.join(names)} ({why}).") for why, names in reasons.items()]
    return "\n\n".join(parts)


def steps_table(result: PruningResult) -> str:
    """A row for the unpruned network and for each step; without the errors where even without spaces these
    would not fit.
    """
    for show in (plus_minus, _tight, _short):
        rows: list[tuple[str, ...]] = [
            ("0", percent(1), percent(1), "", "", "", _accuracy(unpruned_accuracy(result), show))
        ]
        rows += [_row(i + 1, step, show) for i, step in enumerate(result.steps)]
        used = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
        text = table(tuple(_HEADER[i] for i in used), [tuple(row[i] for i in used) for row in rows])
        if max(map(len, text.splitlines())) <= _WIDTH:
            break
    return text


def unpruned_accuracy(result: PruningResult) -> Estimate | None:
    """Of the network before pruning, where it is known."""
    found = result.metadata.get("unpruned", {}).get("accuracy")
    return (
        None
        if not found
        else Estimate(
            *(math.nan if found[key] is None else found[key] for key in ("value", "stderr", "mc_stderr"))
        )
    )


def _row(number: int, step: PruningStep, show: Show) -> tuple[str, ...]:
    moved = [show(e.value, e.stderr) if e else "" for e in (step.predicted, step.moved, step.moved_test)]
    return (
        str(number),
        percent(step.macs_share),
        percent(step.params_share),
        *moved,
        _accuracy(step.accuracy, show),
    )


def _accuracy(found: Estimate | None, show: Show) -> str:
    return f"{show(100 * found.value, 100 * found.stderr)} %" if found else ""


def _tight(value: float, stderr: float) -> str:
    return plus_minus(value, stderr).replace(" ± ", "±")


def _short(value: float, stderr: float) -> str:
    return f"{value:.3g}"


def _legend(result: PruningResult) -> str:
    unit = result.metadata.get("unit")
    said = f"predicted: E‖Jδ‖² to first order; moved: E‖Δf‖² measured against the unpruned network{f', in {unit}' if unit else ''}"
    return (
        f"{said}; on test: on the test inputs."
        if any(step.moved_test for step in result.steps)
        else f"{said}."
    )


def _widths(result: PruningResult) -> list[str]:
    """'conv1: 16 → 9' for each group; channels that went where the widths are not known."""
    removed = result.steps[-1].removed
    before = result.metadata.get("unpruned", {}).get("widths")
    if before is None:
        return [f"{name} −{len(channels)}" for name, channels in removed.items()]
    return [f"{name}: {width} → {width - len(removed.get(name, ()))}" for name, width in before.items()]


def _glued(text: str) -> str:
    """Not to be broken at its spaces, if it fits a line."""
    return text.replace(" ", "\xa0") if len(text) < _WIDTH else text


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False).replace("\xa0", " ")
