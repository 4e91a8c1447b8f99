"""Retraining of one network: its noisy runs and its control run."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import RunningFingerprint, fingerprint
from tpv.common.resume import ResumableStore
from tpv.common.warn import warn
from tpv.model.batches import batch_size
from tpv.model.linearization import masked
from tpv.ntk.training_set import TrainingSet, flattened
from tpv.perturbations.bound import Bound
from tpv.training.loop import Trainer

Run = dict[str, Any]
"""A finished run, as it is stored: ``"delta"`` = w − w* by name, ``"mse_before"`` and ``"mse_after"`` of its
targets, and its ``"seconds"``."""


class BoundRetraining(Bound):
    """One network at w*: its training set, the noise in units of its outputs, and the runs asked for so far.

    Args:
        spec: the :class:`tpv.Retraining`.
        trainer: fits targets from w*.
        std: of the noise.
        targets: what to fit without noise; None for the network's own outputs.
        folder: where finished runs are saved; None for memory.
        settings: whatever else a run depends on.
        runs: how many networks to train unless an estimator says otherwise.

    Raises:
        TPVError: for targets of another shape than the outputs, an optimizer that is refused, or a folder
            that cannot be written.
    """

    finite_by = ""

    def __init__(
        self,
        spec: object,
        trainer: Trainer,
        std: float,
        targets: Tensor | None,
        folder: str | os.PathLike[str] | None,
        settings: tuple[object, ...],
        runs: int,
    ) -> None:
        self.spec, self.finite_draws = spec, runs
        self._trainer, self._std = trainer, std
        self._train = trainer.train
        self._own = self._train.flat
        self._clean = self._own if targets is None else _as_trained(targets, self._train)
        self._identity = self._fingerprint(targets, *settings)
        self._store = ResumableStore(None if folder is None else Path(folder), self._identity, name="run")
        self._store.prepare()
        self._records: dict[str, Run] = {}
        self._control_record: Run | None = None

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """δ of one run."""
        return self._on_device(self.run(generator))

    def control(self) -> dict[str, Tensor]:
        """δ of the run without noise."""
        run = self._finished("control", 0, self._clean)
        self._control_record = _without_weights(run)
        return self._on_device(run)

    def run(self, generator: torch.Generator) -> Run:
        """The run with the noise that this generator gives, trained now unless it is in the store."""
        key = fingerprint(generator)
        noise = self._std * flattened(self._train.noise(generator))
        number = [*self._records, key].index(key) + 1
        run = self._finished(key, number, self._clean + noise)
        if key not in self._records:
            self._records[key] = _without_weights(run)
            self._warn_unless_fallen(number, run)
        return run

    def metadata(self) -> dict[str, Any]:
        """The noise, and how well each run fitted its targets."""
        metadata: dict[str, Any] = {"noise_std": self._std, "runs": list(self._records.values())}
        if (control := self._control_record) is not None:
            metadata["control_mse_before"] = control["mse_before"]
            metadata["control_mse_after"] = control["mse_after"]
        return metadata

    def _on_device(self, run: Run) -> dict[str, Tensor]:
        weights = self._trainer.weights
        return {name: d.to(weights[name]) for name, d in run["delta"].items()}

    def _finished(self, key: str, number: int, targets: Tensor) -> Run:
        stored: Run | None = self._store.get(key)
        if stored is not None:
            return stored
        started = time.perf_counter()
        before = (targets - self._own).double().square().sum().item() / self._train.outputs
        delta, after = self._trainer.run(number, targets)
        seconds = round(time.perf_counter() - started, 3)
        run = {
            "delta": {name: d.cpu() for name, d in delta.items()},
            "mse_before": before,
            "mse_after": after,
            "seconds": seconds,
        }
        self._store.put(key, run)
        return run

    def _warn_unless_fallen(self, number: int, run: Run) -> None:
        if not run["mse_after"] < run["mse_before"]:
            warn(
                f"retraining run {number} did not fit its noisy targets: their mean squared error went from "
                f"{run['mse_before']:.3g} to "
                f"{run['mse_after']:.3g} in {self._trainer.fit.steps} steps; lower lr, or raise steps."
            )

    def _fingerprint(self, *settings: object) -> str:
        """Of everything that a run depends on, its noise aside; outputs to four digits, for they vary with
        the size of chunks.
        """
        trainer, train = self._trainer, self._train
        running = RunningFingerprint()
        running.update(
            version("tpv"), torch.__version__, repr(train.lin.model), list(trainer.weights),
            self._own.device.type, *settings, train.center, trainer.fit, trainer.batch_size,
            repr(trainer.optimizer(trainer.leaves())),
            f"{train.magnitude:.4g}", f"{self._own.double().norm().item():.4g}",
        )  # fmt: skip
        for batch, _ in train.read():
            running.update(train.lin.used(batch))
        return running.hexdigest()


def _without_weights(run: Run) -> Run:
    return {key: value for key, value in run.items() if key != "delta"}


def _as_trained(targets: Tensor, train: TrainingSet) -> Tensor:
    """The user's targets as the loss sees them, as one vector."""
    shapes = {z.shape[1:] for z in train.predictions}
    if len(shapes) > 1 or targets.shape != (train.examples, *next(iter(shapes))):
        wanted = " or ".join(str((train.examples, *shape)) for shape in shapes)
        raise TPVError(
            f"Retraining(targets=...) has the shape {tuple(targets.shape)}; the outputs on the training data "
            f"have {wanted}."
        )
    coordinates, start = [], 0
    for batch, z in train.read():
        rows = targets[start : start + batch_size(batch)].to(z)
        coordinates.append(masked(train.lin.output.coordinates(rows, rows), batch))
        start += len(rows)
    return flattened(coordinates)
