"""Retraining meets a model."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest, weights_digest
from tpv.model.batches import batch_size, inputs, tensors
from tpv.model.linearization import masked
from tpv.model.weights import Weights
from tpv.ntk.training_set import TrainingSet, flattened
from tpv.training.fits import GradientDescent
from tpv.training.loop import Trainer
from tpv.training.store import Finished, Store

if TYPE_CHECKING:
    from tpv.training.retraining import Retraining


@dataclass
class Held:
    """What a :class:`tpv.Retraining` keeps between draws: the model that it met last, and finished runs."""

    store: Store
    session: Session | None = None


class Session:
    """One model at w*: its training set, the noise in units of its outputs, and the runs asked for so far.

    Raises:
        TPVError: for targets of another shape than the outputs, an optimizer that is refused, or a folder
            that cannot be written.
    """

    def __init__(self, spec: Retraining, at: Weights, store: Store) -> None:
        assert isinstance(spec.noise.fit, GradientDescent)
        store.prepare()
        self._at, self._store = at, store
        self._train = TrainingSet(at.linearization, spec.noise.data, center=spec.noise.center)
        self._std = spec.noise.scale(self._train)
        self._own = self._train.flat
        self._clean = self._own if spec.targets is None else _readable(spec.targets, self._train)
        self._trainer = Trainer(
            self._train, at, spec.noise.fit, spec.optimizer, spec.batch_size, spec.adaptive, spec.on_step
        )  # fmt: skip
        self._key = self._fingerprint(spec)
        self._records: dict[str, Finished] = {}
        self._control: Finished | None = None

    def belongs(self, at: Weights) -> bool:
        """Whether these are the weights that this session met."""
        return self._at.linearization is at.linearization and list(self._at) == list(at)

    def run(self, generator: torch.Generator) -> Finished:
        """The run with the noise that this generator gives, done now unless it is kept."""
        key = digest(generator.get_state(), names=(self._key,))
        noise = self._std * flattened(self._train.noise(generator))
        number = [*self._records, key].index(key) + 1
        finished = self._finished(key, number, self._clean + noise)
        if key not in self._records:
            self._records[key] = _without_weights(finished)
            self._warn_unless_fallen(number, finished)
        return finished

    def control(self) -> Finished:
        """The run without noise."""
        finished = self._finished(digest(names=(self._key, "control")), 0, self._clean)
        self._control = _without_weights(finished)
        return finished

    def metadata(self) -> dict[str, Any]:
        """The noise, and how well each run fitted its targets."""
        found: dict[str, Any] = {
            "noise_std": self._std,
            "runs": [
                {"mse_before": r.mse_before, "mse_after": r.mse_after, "seconds": r.seconds}
                for r in self._records.values()
            ],
        }
        if self._control is not None:
            found |= {
                "control_mse_before": self._control.mse_before,
                "control_mse_after": self._control.mse_after,
            }
        return found

    def _finished(self, key: str, number: int, targets: Tensor) -> Finished:
        if (kept := self._store.get(key)) is not None:
            return kept
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

    def _fingerprint(self, spec: Retraining) -> str:
        """Of everything that a run depends on, its noise aside; outputs to four digits, for they vary with
        the size of chunks.
        """
        lin, train = self._at.linearization, self._train
        described = self._trainer.optimizer(self._trainer.leaves())
        text = (
            version("tpv"), torch.__version__, repr(lin.model), list(self._at), self._own.device.type,
            spec.noise.std, spec.noise.relative, spec.noise.center, spec.noise.fit, spec.batch_size, repr(described),
            f"{train.magnitude:.4g}", f"{self._own.double().norm().item():.4g}",
        )  # fmt: skip
        read = [digest(*tensors(batch if lin.custom_forward else inputs(batch))) for batch in train.data]
        targets = () if spec.targets is None else (spec.targets,)
        return digest(*targets, names=(repr(text), weights_digest(lin.model), *read))


def _without_weights(finished: Finished) -> Finished:
    return Finished({}, finished.mse_before, finished.mse_after, finished.seconds)


def _readable(targets: Tensor, train: TrainingSet) -> Tensor:
    """The user's targets as the loss sees them, as one vector."""
    shapes = {z.shape[1:] for z in train.predictions}
    if len(shapes) > 1 or targets.shape != (train.examples, *next(iter(shapes))):
        wanted = " or ".join(str((train.examples, *shape)) for shape in shapes)
        raise TPVError(
            f"Retraining(targets=...) has the shape {tuple(targets.shape)}; the outputs on the training data "
            f"have {wanted}."
        )
    found, start = [], 0
    for batch, z in zip(train.data, train.predictions, strict=True):
        rows = targets[start : start + batch_size(batch)].to(z)
        found.append(masked(train.lin.output.coordinates(rows, rows), batch))
        start += len(rows)
    return flattened(found)
