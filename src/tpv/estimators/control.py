"""What a draw without its randomness moves: drift, beside the variance."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

_NEGLIGIBLE = 0.1


class ControlSums:
    """Additive sums of one quantity at the control's δ₀, at the draws, and around the control.

    Args:
        delta: δ₀.
        followed: the place of the quantity among the values of an example.
    """

    def __init__(self, delta: dict[str, Tensor], followed: int) -> None:
        self.delta, self._followed = delta, followed
        self._count = 0
        self._control = self._drawn = 0.0
        self._around: float | None = None

    def update(self, control: Tensor, drawn: Tensor, around: int) -> None:
        """Add examples: (N, m) at the control, (N, D, m) at the draws, whose column ``around``, if any,
        compares with the control.
        """
        self._count += len(control)
        self._control += control[:, self._followed].sum().item()
        self._drawn += drawn[..., self._followed].mean(1).sum().item()
        if drawn.shape[-1] > around:
            self._around = (self._around or 0.0) + drawn[..., around].mean(1).sum().item()

    def metadata(self) -> dict[str, Any]:
        """Means over examples, after a warning where the control is more than a tenth of what was
        measured.
        """
        value, measured = self._control / self._count, self._drawn / self._count
        found = {"value": value}
        if self._around is not None:
            found["variance"] = self._around / self._count
        if value > _NEGLIGIBLE * measured:
            warnings.warn(_drift(value, measured), stacklevel=5)
        return {"control": found}


def _drift(value: float, measured: float) -> str:
    return (
        f"without noise the predictions move by {value:.3g} already, against a measured TPV of "
        f"{measured:.3g}: that much is the drift of "
        "weights that this training has not brought to rest, not variance; train them further, fit the "
        "network's own outputs "
        "(targets=None, no weight decay), or read the TPV around the control run in "
        "metadata['control']['variance']."
    )
