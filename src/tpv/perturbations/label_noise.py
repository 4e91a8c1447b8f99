"""Refitting noisy targets."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tpv._errors import TPVError
from tpv._options import require_number
from tpv.perturbations.base import Displacements, Perturbation
from tpv.perturbations.fits import Fit
from tpv.training import TrainingSet
from tpv.weights import Patterns, Weights


@dataclass(frozen=True, eq=False, repr=False)
class LabelNoise(Perturbation):
    std: float
    data: object = field(repr=False)
    fit: Fit
    center: bool = True
    relative: bool = False
    params: Patterns = None

    def __post_init__(self) -> None:
        require_number("LabelNoise", "std", self.std, 0, open_low=True)
        if not isinstance(self.fit, Fit):
            raise TPVError(
                f"LabelNoise(fit={self.fit!r}): give Interpolation(), Ridge(gamma) or GradientDescent(lr, steps), from tpv.perturbations."
            )

    @property
    def output(self) -> str:  # type: ignore[override]
        """Centred logits where the loss is centred."""
        return "centered" if self.center else "logits"

    def scale(self, train: TrainingSet) -> float:
        """The standard deviation of the noise, in units of the outputs."""
        return float(self.std) * (train.magnitude if self.relative else 1)
