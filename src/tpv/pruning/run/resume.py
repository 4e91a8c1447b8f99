"""What an interrupted pruning has finished, kept so that the same call resumes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpv.common.describe import told
from tpv.common.errors import TPVError
from tpv.common.files import put, put_text
from tpv.common.fingerprint import digest, weights_digest
from tpv.model.batches import batch_size, tensors
from tpv.model.linearization import Forward
from tpv.pruning.channels.surgery import Surgery
from tpv.pruning.files.checkpoint import DESCRIPTION, WEIGHTS, load, read, save
from tpv.pruning.run.result import PruningResult, PruningStep
from tpv.pruning.widths.curves import Curve

LOG = "log.json"


class PruningStore:
    """Finished steps with their networks, and curves; a folder of their own for each fingerprint of the
    arguments.

    An unfinished run lies in ``unfinished-…``, one folder for each fingerprint; when it finishes, its steps
    go to ``steps``, in the place of those of the run that finished there before.

    Args:
        folder: where the result goes; None to keep everything in memory.
        fingerprint: text that changes whenever a number would.
        fresh: forget what an earlier run of this fingerprint left.

    Raises:
        TPVError: if nothing can be written there.
    """

    def __init__(self, folder: Path | None, fingerprint: str, *, fresh: bool) -> None:
        self.steps: list[PruningStep] = []
        self._curves: dict[str, Curve] = {}
        self._kept: list[Surgery] = []
        self._folder = folder
        self._fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
        if folder is None:
            return
        self._run = folder / f"unfinished-{self._fingerprint[:12]}"
        if fresh:
            _discard(self._run)
        elif not (self._run / LOG).exists() and _fingerprint_of(folder / "steps") == self._fingerprint:
            self._run = folder / "steps"
        self._read()
        self._write()

    def add(self, step: PruningStep, surgery: Surgery, example: Any, unpruned: nn.Module) -> None:
        """Keep a step, on disk before this returns."""
        if self._folder is None:
            self._kept.append(surgery)
        else:
            save(surgery.model, self._place(len(self.steps)), surgery.history, example, unpruned=unpruned)
        self.steps.append(step)
        self._write()

    def model(
        self, model: nn.Module, index: int, *, example: Any = None, forward: Forward | None = None
    ) -> Surgery:
        """The network after a finished step.

        Args:
            model: the unpruned one.
            index: of the step.
            example, forward: as in :func:`tpv.pruning.load`.
        """
        if self._folder is None:
            return self._kept[index]
        place = self._place(index)
        return Surgery(load(model, place, example=example, forward=forward), read(place).history)

    def curve(self, name: str) -> Curve | None:
        """A measured curve."""
        return self._curves.get(name)

    def keep_curve(self, name: str, curve: Curve) -> None:
        """Keep a curve, on disk before this returns."""
        self._curves[name] = curve
        self._write()

    def finish(self, result: PruningResult) -> None:
        """Put the last step's network and the log of the result into the folder itself: nothing is
        unfinished.
        """
        if self._folder is None:
            return
        last = self._place(len(self.steps) - 1)
        for name in (WEIGHTS, DESCRIPTION):
            put(self._folder / name, lambda draft, name=name: shutil.copyfile(last / name, draft))  # type: ignore[misc]
        text = result.to_json() + "\n"
        put_text(self._folder / LOG, text)
        finished = self._folder / "steps"
        if self._run != finished:
            _discard(finished)
            os.replace(self._run, finished)
            self._run = finished

    def discard_if_empty(self) -> None:
        """Leave no folder of a run that has finished nothing."""
        if self._folder is not None and not self.steps and not self._curves:
            _discard(self._run)

    def _place(self, index: int) -> Path:
        return self._run / f"{index + 1:02}"

    def _write(self) -> None:
        if self._folder is None:
            return
        found = {
            "fingerprint": self._fingerprint,
            "steps": [step.to_dict() for step in self.steps],
            "curves": {
                name: {width: None if math.isnan(value) else value for width, value in curve.items()}
                for name, curve in self._curves.items()
            },
        }
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        put_text(self._run / LOG, text)

    def _read(self) -> None:
        """Steps up to the first whose network cannot be read, and curves."""
        try:
            found = json.loads((self._run / LOG).read_text(encoding="utf-8"))
            if found["fingerprint"] != self._fingerprint:
                return
            steps = [PruningStep.from_dict(step) for step in found["steps"]]
            self._curves = {
                name: {
                    int(width): math.nan if value is None else float(value) for width, value in curve.items()
                }
                for name, curve in found["curves"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        for index, step in enumerate(steps):
            try:
                read(self._place(index))
            except TPVError:
                return
            self.steps.append(step)


def _fingerprint_of(run: Path) -> str | None:
    try:
        return str(json.loads((run / LOG).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _discard(run: Path) -> None:
    """Remove a run; under another name first, so that an interrupt leaves nothing that looks whole, and what
    it left the next time.
    """
    if run.exists():
        os.replace(run, run.with_name(f".{run.name}.{os.getpid()}.part"))
    for doomed in run.parent.glob(f".{run.name}.*.part"):
        shutil.rmtree(doomed)


def fingerprint(model: nn.Module, data: Sequence[Any], test: Sequence[Any] | None, *arguments: object) -> str:
    """The weights, the batches, the arguments and the versions, as text.

    Example:
        >>> model, data = nn.Linear(2, 1), [torch.ones(3, 2)]
        >>> fingerprint(model, data, None, "macs=0.5") == fingerprint(model, data, None, "macs=0.4")
        False
    """
    batches = [
        None if part is None else [(batch_size(batch), digest(*tensors(batch))) for batch in part]
        for part in (data, test)
    ]
    versions = version("tpv"), torch.__version__, version("torch_pruning")
    return repr((weights_digest(model), batches, told(arguments), versions))
