"""A pruning as text, within 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpv.common.format import percent, plus_minus, table
from tpv.common.stats import Estimate
from tpv.pruning.step import PruningStep

_WIDTH = 80
_Show = Callable[[float, float], str]
_HEADER = ("step", "MACs", "params", "predicted", "change", "on test", "accuracy")


def summary(steps: Sequence[PruningStep], metadata: Mapping[str, Any], excluded: Mapping[str, str]) -> str:
    """The steps, widths before and after, and what was left alone and why."""
    paragraphs = [", ".join(map(_unbroken, _arguments(metadata))), _legend(steps, metadata)]
    if steps:
        paragraphs.append("Widths: " + ", ".join(map(_unbroken, _widths(steps[-1], metadata))))
        if (unit := metadata.get("target_unit")) not in (None, "macs", "params"):
            paragraphs.append(f"Left of {unit}: {percent(steps[-1].cost_share)}.")
    if replaced := metadata.get("replaced_shortcuts"):
        names = ", ".join(replaced)
        paragraphs.append(f"Padding shortcuts that became convolutions with the same outputs: {names}.")
    reasons: dict[str, list[str]] = {}
    for name, why in excluded.items():
        reasons.setdefault(why.rstrip("."), []).append(name)
    paragraphs += [f"Left alone: {', '.join(names)} ({why})." for why, names in reasons.items()]
    first, *rest = map(_wrapped, paragraphs)
    return "\n\n".join(part for part in (first, steps_table(steps, metadata), *rest) if part)


def steps_table(steps: Sequence[PruningStep], metadata: Mapping[str, Any]) -> str:
    """A row for the unpruned network and for each step; without the errors where they would not fit."""
    tight, short = (lambda v, e: plus_minus(v, e).replace(" ± ", "±")), (lambda v, e: f"{v:.3g}")
    for show in (plus_minus, tight, short):
        before = _accuracy(unpruned_accuracy(metadata), show)
        rows = [("0", percent(1), percent(1), "", "", "", before)]
        rows += [_row(i, step, show) for i, step in enumerate(steps, 1)]
        used = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
        text = table(tuple(_HEADER[i] for i in used), [tuple(row[i] for i in used) for row in rows])
        if max(map(len, text.splitlines())) <= _WIDTH:
            break
    return text


def unpruned_accuracy(metadata: Mapping[str, Any]) -> Estimate | None:
    """Of the network before pruning, where it is known."""
    accuracy = metadata.get("unpruned", {}).get("accuracy")
    if not accuracy:
        return None
    values = (accuracy[key] for key in ("value", "stderr", "mc_stderr"))
    return Estimate(*(math.nan if value is None else value for value in values))


def _arguments(metadata: Mapping[str, Any]) -> list[str]:
    texts = [str(metadata[key]) for key in ("target", "criterion") if key in metadata]
    texts += [f"allocation {metadata['allocation']}"] if "allocation" in metadata else []
    repairs = (("compensate", "re-fitted"), ("recalibrate", "recalibrated"))
    return texts + [words for key, words in repairs if metadata.get(key)]


def _row(number: int, step: PruningStep, show: _Show) -> tuple[str, str, str, str, str, str, str]:
    changes = (step.predicted, step.output_change, step.output_change_test)
    predicted, change, test = (show(e.value, e.stderr) if e else "" for e in changes)
    shares = percent(step.macs_share), percent(step.params_share)
    return (str(number), *shares, predicted, change, test, _accuracy(step.accuracy, show))


def _accuracy(accuracy: Estimate | None, show: _Show) -> str:
    return f"{show(100 * accuracy.value, 100 * accuracy.stderr)} %" if accuracy else ""


def _legend(steps: Sequence[PruningStep], metadata: Mapping[str, Any]) -> str:
    unit = f", in {metadata['unit']}" if metadata.get("unit") else ""
    test = "; on test: on the test inputs" if any(step.output_change_test for step in steps) else ""
    return (
        f"predicted: E‖Jδ‖² to first order; change: E‖Δf‖² measured against the unpruned network{unit}{test}."
    )


def _widths(step: PruningStep, metadata: Mapping[str, Any]) -> list[str]:
    """'conv1: 16 → 9' for each group; removed channels where the widths are not known."""
    before = metadata.get("unpruned", {}).get("widths")
    if before is None:
        return [f"{name} −{len(channels)}" for name, channels in step.removed.items()]
    return [f"{name}: {width} → {width - len(step.removed.get(name, ()))}" for name, width in before.items()]


def _unbroken(text: str) -> str:
    """Not to be broken at its spaces, if it fits a line."""
    return text.replace(" ", "\xa0") if len(text) < _WIDTH else text


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False).replace("\xa0", " ")
