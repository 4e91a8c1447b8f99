"""Retraining of one network: its noisy runs and its control run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest
from tpv.model.batches import batch_size, inputs, tensors
from tpv.model.linearization import masked
from tpv.ntk.training_set import TrainingSet, flattened
from tpv.perturbations.bound import Bound
from tpv.training.loop import Trainer
from tpv.training.store import Finished, Store


class BoundRetraining(Bound):
    """One network at w*: its training set, the noise in units of its outputs, and the runs asked for so far.

    Args:
        spec: the :class:`tpv.Retraining`.
        trainer: fits targets from w*.
        std: of the noise.
        targets: what to fit without noise; None for the network's own outputs.
        store: finished runs.
        settings: whatever else a run depends on.
        runs: how many networks to train unless an estimator says otherwise.

    Raises:
        TPVError: for targets of another shape than the outputs, or an optimizer that is refused.
    """

    def __init__(
        self,
        spec: object,
        trainer: Trainer,
        std: float,
        targets: Tensor | None,
        store: Store,
        settings: tuple[object, ...],
        runs: int,
    ) -> None:
        self.spec, self.finite_draws = spec, runs
        self._trainer, self._std, self._store = trainer, std, store
        self._train = trainer.train
        self._own = self._train.flat
        self._clean = self._own if targets is None else _as_trained(targets, self._train)
        self._key = self._fingerprint(settings, () if targets is None else (targets,))
        self._records: dict[str, Finished] = {}
        self._control_record: Finished | None = None

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """δ of one run."""
        return self._on_device(self.run(generator))

    def control(self) -> dict[str, Tensor]:
        """δ of the run without noise."""
        finished = self._finished(digest(names=(self._key, "control")), 0, self._clean)
        self._control_record = _without_weights(finished)
        return self._on_device(finished)

    def run(self, generator: torch.Generator) -> Finished:
        """The run with the noise that this generator gives, trained now unless it is in the store."""
        key = digest(generator.get_state(), names=(self._key,))
        noise = self._std * flattened(self._train.noise(generator))
        number = [*self._records, key].index(key) + 1
        finished = self._finished(key, number, self._clean + noise)
        if key not in self._records:
            self._records[key] = _without_weights(finished)
            self._warn_unless_fallen(number, finished)
        return finished

    def metadata(self) -> dict[str, Any]:
        """The noise, and how well each run fitted its targets."""
        record: dict[str, Any] = {
            "noise_std": self._std,
            "runs": [
                {"mse_before": r.mse_before, "mse_after": r.mse_after, "seconds": r.seconds}
                for r in self._records.values()
            ],
        }
        if self._control_record is not None:
            record |= {
                "control_mse_before": self._control_record.mse_before,
                "control_mse_after": self._control_record.mse_after,
            }
        return record

    def _on_device(self, finished: Finished) -> dict[str, Tensor]:
        weights = self._trainer.weights
        return {
            name: weights.without_padding(name, d.to(weights[name])) for name, d in finished.delta.items()
        }

    def _finished(self, key: str, number: int, targets: Tensor) -> Finished:
        if (stored := self._store.get(key)) is not None:
            return stored
        started = time.perf_counter()
        before = (targets - self._own).double().square().sum().item() / self._train.outputs
        delta, after = self._trainer.run(number, targets)
        seconds = round(time.perf_counter() - started, 3)
        finished = Finished({name: d.cpu() for name, d in delta.items()}, before, after, seconds)
        self._store.put(key, finished)
        return finished

    def _warn_unless_fallen(self, number: int, finished: Finished) -> None:
        if not finished.mse_after < finished.mse_before:
            warnings.warn(
                f"retraining run {number} did not fit its noisy targets: their mean squared error went from "
                f"{finished.mse_before:.3g} to "
                f"{finished.mse_after:.3g} in {self._trainer.fit.steps} steps; lower lr, or raise steps.",
                stacklevel=2,
            )

    def _fingerprint(self, settings: Sequence[object], targets: tuple[Tensor, ...]) -> str:
        """Of everything that a run depends on, its noise aside; outputs to four digits, for they vary with
        the size of chunks.
        """
        trainer, train = self._trainer, self._train
        text = (
            version("tpv"), torch.__version__, repr(train.lin.model), list(trainer.weights),
            self._own.device.type, *settings, train.center, trainer.fit, trainer.batch_size,
            repr(trainer.optimizer(trainer.leaves())),
            f"{train.magnitude:.4g}", f"{self._own.double().norm().item():.4g}",
        )  # fmt: skip
        data = [
            digest(*tensors(batch if train.lin.custom_forward else inputs(batch))) for batch in train.data
        ]
        return digest(*targets, names=(repr(text), *data))


def _without_weights(finished: Finished) -> Finished:
    return Finished({}, finished.mse_before, finished.mse_after, finished.seconds)


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
    for batch, z in zip(train.data, train.predictions, strict=True):
        rows = targets[start : start + batch_size(batch)].to(z)
        coordinates.append(masked(train.lin.output.coordinates(rows, rows), batch))
        start += len(rows)
    return flattened(coordinates)
