"""One step of a pruning, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpv.common.stats import Estimate
from tpv.results.serialization import JSONResult


@dataclass(frozen=True)
class PruningStep(JSONResult):
    """One step.

    Attributes:
        removed: group → removed channels (sets of tied ones), numbered as in the unpruned model.
        macs, params: what is left, and ``macs_share``, ``params_share`` of the unpruned model, ``cost_share``
            of the target's own unit.
        predicted: first-order output change E‖J δ‖² of the removal, before it is done.
        linearity: V of that prediction, E‖Δf − Jδ‖²/E‖Δf‖².
        output_change_before_repair: E‖Δf‖² against the unpruned model on the calibration inputs, when the
            channels are gone.
        output_change: the same after re-fitting or recalibration.
        output_change_test: the same on the test inputs; None without them.
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
    output_change_before_repair: Estimate
    output_change: Estimate
    output_change_test: Estimate | None = None
    accuracy: Estimate | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        removed = {name: tuple(map(int, channels)) for name, channels in self.removed.items()}
        object.__setattr__(self, "removed", removed)
