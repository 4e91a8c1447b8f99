"""What pruning did, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tpv._stats import Estimate
from tpv.pruning.curves import Curve
from tpv.result.serialization import JSONResult


@dataclass(frozen=True)
class PruningStep(JSONResult):
    """One step.

    Attributes:
        removed: group → removed channels (sets of tied ones), numbered as in the unpruned model.
        macs, params: what is left, and ``macs_share``, ``params_share`` of the unpruned model.
        predicted: E‖J δ‖² of the removal from the unpruned model, to first order, before anything is cut.
        linearity: V of that prediction, E‖Δf − Jδ‖²/E‖Δf‖².
        cut: E‖Δf‖² against the unpruned model on the calibration inputs, when the channels are gone.
        moved: the same after re-fitting or recalibration.
        moved_test: the same on the test inputs; None without them.
        accuracy: on labelled test inputs; None without them.
        seconds: of the step.
    """

    removed: dict[str, list[int]]
    macs: int
    params: int
    macs_share: float
    params_share: float
    predicted: Estimate
    linearity: float
    cut: Estimate
    moved: Estimate
    moved_test: Estimate | None = None
    accuracy: Estimate | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class PruningResult:
    """A pruned network and how it came about.

    Attributes:
        model: the pruned network, a model of its own.
        steps: what each step did; the last one is this model.
        history: Torch-Pruning's pruning history of this model.
        curves: group → {width: E‖Δf‖²} as measured, for ``allocation="curves"``.
        excluded: group → why it was left alone.
        metadata: criterion, target, seed, examples, versions; MACs, parameters and accuracy of the unpruned network.
    """

    model: nn.Module = field(repr=False)
    steps: tuple[PruningStep, ...]
    history: list[list[Any]] = field(repr=False)
    curves: dict[str, Curve] = field(repr=False)
    excluded: dict[str, str]
    metadata: dict[str, Any]
