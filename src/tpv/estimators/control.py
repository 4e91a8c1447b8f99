"""The control run, a draw without its randomness: drift of the predictions, beside their variance."""

from __future__ import annotations

import torch
from torch import Tensor

from tpv.common.stats import Moments
from tpv.common.warn import warn

_NEGLIGIBLE = 0.1


class ControlSums:
    """Additive sums of one quantity at the control's δ₀, at the draws, and around the control.

    Args:
        followed: the place of the quantity among the values of an example.
    """

    def __init__(self, followed: int) -> None:
        self._followed = followed
        self._moments: Moments | None = None

    def update(self, control: Tensor, drawn: Tensor, around: int) -> None:
        """Add examples: (N, m) at the control, (N, D, m) at the draws, whose column ``around``, if any,
        compares with the control.
        """
        columns = [control[:, self._followed], drawn[..., self._followed].mean(1)]
        if drawn.shape[-1] > around:
            columns.append(drawn[..., around].mean(1))
        if self._moments is None:
            self._moments = Moments(["value", "measured", "variance"][: len(columns)])
        self._moments.update(torch.stack(columns, 1))

    def merge(self, other: ControlSums) -> None:
        """Add the sums of another shard of the data."""
        if self._moments is None:
            self._moments = other._moments
        elif other._moments is not None:
            self._moments.merge(other._moments)

    def result(self) -> dict[str, float]:
        """Means over examples: ``"value"`` at the control, and ``"variance"`` of the draws around it.

        Warns where the control is more than a tenth of what was measured.
        """
        assert self._moments is not None
        result = self._moments.result()
        means = dict(zip(result.names, result.mean.tolist(), strict=True))
        measured = means.pop("measured")
        if means["value"] > _NEGLIGIBLE * measured:
            warn(_drift(means["value"], measured))
        return means


def _drift(value: float, measured: float) -> str:
    return (
        f"without noise the predictions already change by {value:.3g}, against a measured TPV of "
        f"{measured:.3g}: that part is drift, not variance: w* does not minimize the training loss. "
        "Train the network further, fit its own outputs (targets=None, no weight decay), or use "
        "the TPV around the control run in metadata['control']['variance']."
    )
