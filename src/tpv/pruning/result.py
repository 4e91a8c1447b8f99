"""The result of a pruning."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.common.files import put_text
from tpv.common.stats import Estimate
from tpv.plots.pruning import PruningCurve, plot_pruning
from tpv.pruning.files.architecture import Architecture
from tpv.pruning.files.checkpoint import write
from tpv.pruning.files.folder import DESCRIPTION, LOG, WEIGHTS, check_writable
from tpv.pruning.step import PruningStep
from tpv.pruning.summary import summary, unpruned_accuracy
from tpv.pruning.widths.selection import Curve
from tpv.results.serialization import plain

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

_NUMBERS = ("macs", "params", "macs_share", "params_share", "linearity")
_ESTIMATES = tuple(f.name for f in fields(PruningStep) if "Estimate" in str(f.type))


@dataclass(frozen=True, eq=False)
class PruningResult:
    """A pruned network and how it came about.

    Attributes:
        model: the pruned network, a model of its own.
        steps: of the pruning; the last one is this model.
        curves: group → {width: E‖Δf‖²} as measured, for ``allocation="curves"``.
        excluded: group → why it was left alone.
        metadata: criterion, target, seed, examples, versions; MACs, parameters and accuracy of the unpruned
            network.
        unpruned: the architecture of the unpruned network, which :meth:`save` keeps.
    """

    model: nn.Module = field(repr=False)
    steps: tuple[PruningStep, ...]
    curves: dict[str, Curve] = field(repr=False)
    excluded: dict[str, str]
    metadata: dict[str, Any]
    unpruned: Architecture | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return summary(self.steps, self.metadata, self.excluded)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything but the network as JSON text, written to ``path`` too if one is given; nan becomes
        null.
        """
        names = ("steps", "curves", "excluded", "metadata")
        contents = {"type": "PruningResult", **{name: plain(getattr(self, name)) for name in names}}
        text = _integers_on_one_line(json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False))
        if path is not None:
            put_text(Path(path), text + "\n")
        return text

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.safetensors`` and ``pruning.json`` for :func:`tpv.pruning.load`, and ``log.json``,
        which is :meth:`to_json`.

        Args:
            folder: made where it is missing; an earlier result in it is replaced, and whatever interrupts,
                one of the two networks is there.
            overwrite: replace files of these names that tpv did not write, too.

        Raises:
            TPVError: as :func:`tpv.pruning.save`.
        """
        if self.unpruned is None:
            raise TPVError(
                "this result does not know the unpruned network: use tpv.pruning.save(model, folder, "
                "unpruned=)."
            )
        check_writable(Path(folder), WEIGHTS, DESCRIPTION, LOG, overwrite=overwrite)
        write(self.model, Path(folder), self.unpruned)
        self.to_json(Path(folder) / LOG)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per step, numbers and their standard errors. Needs ``pip install 'tpv[pandas]'``."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install 'tpv[pandas]'") from error
        rows = []
        for step in self.steps:
            row: dict[str, float] = {name: getattr(step, name) for name in _NUMBERS}
            for name in _ESTIMATES:
                if (estimate := getattr(step, name)) is not None:
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
        return plot_pruning(self.plot_data(), axes, accuracy=self.has_accuracy)

    def plot_data(self) -> list[PruningCurve]:
        """The numbers of :meth:`plot`."""
        if self.has_accuracy:
            before = unpruned_accuracy(self.metadata)
            return [self._curve("accuracy", "accuracy", [] if before is None else [(1.0, 1.0, before)])]
        names = {
            "output_change_test": "test inputs",
            "output_change": "calibration inputs",
            "predicted": "first order",
        }
        curves = [self._curve(name, field) for field, name in names.items()]
        return [curve for curve in curves if curve.values]

    @property
    def has_accuracy(self) -> bool:
        """Whether the test inputs had labels."""
        return any(step.accuracy for step in self.steps)

    def _curve(
        self, name: str, field: str, points: Sequence[tuple[float, float, Estimate]] = ()
    ) -> PruningCurve:
        steps = [(step.macs_share, step.params_share, getattr(step, field)) for step in self.steps]
        logarithmic = field != "accuracy"
        rows = [*points, *(row for row in steps if row[2] and (row[2].value > 0 or not logarithmic))]
        macs, params, estimates = zip(*rows, strict=True) if rows else ((), (), ())
        return PruningCurve(name, macs, params, [e.value for e in estimates], [e.stderr for e in estimates])


def _integers_on_one_line(text: str) -> str:
    """Indented JSON with lists of integers on one line each."""
    return re.sub(
        r"\[\n\s*\d+(,\n\s*\d+)*\n\s*\]",
        lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
