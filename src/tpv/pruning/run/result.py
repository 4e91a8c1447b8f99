"""What pruning did, step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.common.files import put
from tpv.common.stats import Estimate
from tpv.pruning.files.checkpoint import Origin, write
from tpv.pruning.run.summary import summary
from tpv.pruning.widths.curves import Curve
from tpv.results.serialization import JSONResult, plain

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True)
class PruningStep(JSONResult):
    """One step.

    Attributes:
        removed: group → removed channels (sets of tied ones), numbered as in the unpruned model.
        macs, params: what is left, and ``macs_share``, ``params_share`` of the unpruned model, ``cost_share``
            of the target's own unit.
        predicted: E‖J δ‖² of the removal from the unpruned model, to first order, before anything is cut.
        linearity: V of that prediction, E‖Δf − Jδ‖²/E‖Δf‖².
        cut: E‖Δf‖² against the unpruned model on the calibration inputs, when the channels are gone.
        moved: the same after re-fitting or recalibration.
        moved_test: the same on the test inputs; None without them.
        accuracy: on labelled test inputs; None without them.
        seconds: of the step.
    """

    removed: Mapping[str, Sequence[int]]
    macs: int
    params: int
    macs_share: float
    params_share: float
    cost_share: float
    predicted: Estimate
    linearity: float
    cut: Estimate
    moved: Estimate
    moved_test: Estimate | None = None
    accuracy: Estimate | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "removed", {name: tuple(map(int, channels)) for name, channels in self.removed.items()}
        )


@dataclass(frozen=True, eq=False)
class PruningResult:
    """A pruned network and how it came about.

    Attributes:
        model: the pruned network, a model of its own.
        steps: what each step did; the last one is this model.
        history: Torch-Pruning's pruning history of this model.
        curves: group → {width: E‖Δf‖²} as measured, for ``allocation="curves"``.
        excluded: group → why it was left alone.
        metadata: criterion, target, seed, examples, versions; MACs, parameters and accuracy of the unpruned
            network.
        origin: what :meth:`save` keeps of the unpruned network.
    """

    model: nn.Module = field(repr=False)
    steps: tuple[PruningStep, ...]
    history: list[list[Any]] = field(repr=False)
    curves: dict[str, Curve] = field(repr=False)
    excluded: dict[str, str]
    metadata: dict[str, Any]
    origin: Origin | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return summary(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything but the network and its history as JSON text, written to ``path`` too if one is given;
        nan becomes null.
        """
        names = ("steps", "curves", "excluded", "metadata")
        found = {"type": "PruningResult", **{name: plain(getattr(self, name)) for name in names}}
        text = _numbers_in_lines(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``pruning.json`` for :func:`tpv.pruning.load`, and ``log.json``,
        which is :meth:`to_json`.

        Raises:
            TPVError: as :func:`tpv.pruning.save`.
        """
        if self.origin is None:
            raise TPVError(
                "this result does not know the unpruned network: use tpv.pruning.save(model, folder, "
                "history, example, unpruned=)."
            )
        write(self.model, Path(folder), self.history, self.origin)
        put(Path(folder) / "log.json", lambda draft: self.to_json(draft))

    def to_pandas(self) -> pandas.DataFrame:
        """One row per step, numbers and their standard errors. Needs ``pip install 'tpv[pandas]'``."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install 'tpv[pandas]'") from error
        rows = []
        for step in self.steps:
            row: dict[str, float] = {
                name: getattr(step, name)
                for name in ("macs", "params", "macs_share", "params_share", "linearity")
            }
            for name in ("predicted", "cut", "moved", "moved_test", "accuracy"):
                estimate = getattr(step, name)
                if estimate is not None:
                    row |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
            rows.append(row | {"seconds": step.seconds})
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="step"))

    def plot(self, axes: Sequence[matplotlib.axes.Axes] | None = None) -> Sequence[matplotlib.axes.Axes]:
        """Accuracy, or E‖Δf‖² where there are no labels, against the shares of MACs and of parameters that
        are left.

        Args:
            axes: two to draw on; by default those of a new figure.

        Needs ``pip install 'tpv[plot]'``.
        """
        from tpv.pruning.run.plots import plot_steps

        return plot_steps(self, axes)


def _numbers_in_lines(text: str) -> str:
    """Indented JSON with lists of integers on one line each."""
    return re.sub(
        r"\[\n\s*\d+(,\n\s*\d+)*\n\s*\]",
        lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
