"""The control run, a draw without its randomness: drift of the predictions, beside their variance."""

from __future__ import annotations

import warnings

from torch import Tensor

_NEGLIGIBLE = 0.1


class ControlSums:
    """Additive sums of one quantity at the control's δ₀, at the draws, and around the control.

    Args:
        followed: the place of the quantity among the values of an example.
    """

    def __init__(self, followed: int) -> None:
        self._followed = followed
        self.count = 0
        self.at_control = self.at_draws = 0.0
        self.around_control: float | None = None

    def update(self, control: Tensor, drawn: Tensor, around: int) -> None:
        """Add examples: (N, m) at the control, (N, D, m) at the draws, whose column ``around``, if any,
        compares with the control.
        """
        self.count += len(control)
        self.at_control += control[:, self._followed].sum().item()
        self.at_draws += drawn[..., self._followed].mean(1).sum().item()
        if drawn.shape[-1] > around:
            self.around_control = (self.around_control or 0.0) + drawn[..., around].mean(1).sum().item()

    def merge(self, other: ControlSums) -> None:
        """Add the sums of another shard of the data."""
        self.count += other.count
        self.at_control += other.at_control
        self.at_draws += other.at_draws
        if other.around_control is not None:
            self.around_control = (self.around_control or 0.0) + other.around_control

    def result(self) -> dict[str, float]:
        """Means over examples: ``"value"`` at the control, and ``"variance"`` of the draws around it.

        Warns where the control is more than a tenth of what was measured.
        """
        value, measured = self.at_control / self.count, self.at_draws / self.count
        means = {"value": value}
        if self.around_control is not None:
            means["variance"] = self.around_control / self.count
        if value > _NEGLIGIBLE * measured:
            warnings.warn(_drift(value, measured), stacklevel=6)
        return means


def _drift(value: float, measured: float) -> str:
    return (
        f"without noise the predictions already change by {value:.3g}, against a measured TPV of "
        f"{measured:.3g}: that part is drift, because w* is not at a minimum of what is trained, and not "
        "variance; train the network further, fit its own outputs (targets=None, no weight decay), or use "
        "the TPV around the control run in metadata['control']['variance']."
    )
