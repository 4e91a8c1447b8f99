"""What is to be pruned, how far, and how."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.options import require_choice, require_int
from tpv.model.batches import batch_size, ends
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.pruning.channels.groups import Parameters
from tpv.pruning.scores.criteria import Criterion
from tpv.pruning.widths.budget import Target
from tpv.pruning.widths.selection import Curve

Strategy = Literal["global", "uniform", "curves"]


@dataclass(frozen=True)
class PruningConfig:
    """The rarer options of :func:`tpv.prune`.

    Args:
        steps: even steps of cost; by default 9, or 1 for ``allocation="curves"``.
        ignore: glob patterns of groups to leave alone, by the name of the layer that gives out the channels.
        recalibrate: replace BatchNorm's running statistics by those of the calibration inputs
            (:func:`tpv.pruning.recalibrate`).
        curves: those of an earlier result (:attr:`PruningResult.curves`), so that another target needs no new
            measurement.
        generator: seed of the criterion's random directions.
        out: a folder for the pruned network and the log, as :meth:`PruningResult.save` writes them.
        overwrite: replace files in ``out`` that tpv did not write, too.

    Raises:
        TPVError: for other values.
    """

    steps: int | None = None
    ignore: str | Collection[str] = ()
    recalibrate: bool = False
    curves: Mapping[str, Curve] = field(default_factory=dict)
    generator: int = 0
    out: str | Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_int("PruningConfig", "steps", self.steps, 1)
        require_int("PruningConfig", "generator", self.generator, 0)


@dataclass(frozen=True, eq=False)
class PruningTask:
    """The arguments of :func:`tpv.prune`, checked, with the batches in memory and an example to trace."""

    model: nn.Module
    data: list[Any]
    test: list[Any] | None
    target: Target
    criterion: Criterion | Callable[[Any], Tensor]
    allocation: Strategy
    compensate: bool
    forward: Forward | None
    config: PruningConfig
    example: Any = field(init=False)

    def __post_init__(self) -> None:
        require_choice("prune", "allocation", self.allocation, ("global", "uniform", "curves"))
        if not isinstance(self.target, Target):
            raise TPVError(
                f"target={self.target!r}: give the share to keep, 'macs=0.5' or 'params=0.5', or a "
                "tpv.pruning.Target."
            )
        if self.config.curves and self.allocation != "curves":
            raise TPVError(f"curves= are for allocation='curves', and allocation is {self.allocation!r}.")
        if isinstance(self.criterion, type) or not (
            isinstance(self.criterion, Criterion) or callable(self.criterion)
        ):
            raise TPVError(
                f"criterion={self.criterion!r}: give tpv.pruning.TPVImportance(), JBR(), JC() or an "
                "importance of Torch-Pruning."
            )
        if not self.data:
            raise TPVError("data is empty: it gave no batch.")
        object.__setattr__(self, "example", ends(self.data[0], batch_size(self.data[0])))

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.config.steps or (1 if self.allocation == "curves" else 9)

    @property
    def output(self) -> OutputSpec:
        """The output space of the criterion."""
        return self.criterion.output if isinstance(self.criterion, Criterion) else "logits"

    @property
    def parameters(self) -> Parameters:
        """Which weights its scores count as a channel's."""
        return self.criterion.parameters if isinstance(self.criterion, Criterion) else "consumers"
