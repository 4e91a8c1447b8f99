"""What is to be pruned, how far, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.options import require_choice, require_int
from tpv.model.batches import batch_size, ends
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.pruning.channels.groups import Members
from tpv.pruning.run.resume import fingerprint
from tpv.pruning.scores.criteria import Criterion
from tpv.pruning.widths.curves import Curve
from tpv.pruning.widths.target import Target

Allocation = Literal["global", "uniform", "curves"]
Importance = Callable[[Any], Tensor]
"""Torch-Pruning's: a group → scores of its root channels."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The arguments of :func:`tpv.prune`, checked, with the batches in memory.

    Attributes:
        replaced: padding shortcuts that are convolutions in ``model``.
        example: the first and the last example of the first batch, to trace the network with.
    """

    model: nn.Module
    data: list[Any]
    test: list[Any] | None
    target: Target
    criterion: Criterion | Importance
    allocation: Allocation
    compensate: bool
    recalibrate: bool
    steps: int
    ignore: tuple[str, ...]
    curves: Mapping[str, Curve]
    forward: Forward | None
    generator: int
    replaced: tuple[str, ...]
    example: Any = field(init=False)

    def __post_init__(self) -> None:
        require_choice("prune", "allocation", self.allocation, ("global", "uniform", "curves"))
        require_int("prune", "steps", self.steps, 1)
        require_int("prune", "generator", self.generator, 0)
        if not isinstance(self.target, Target):
            raise TPVError(
                f"target={self.target!r}: give the share to keep, 'macs=0.5' or 'params=0.5', or a "
                "tpv.pruning.Target."
            )
        if self.curves and self.allocation != "curves":
            raise TPVError(f"curves= are for allocation='curves', and allocation is {self.allocation!r}.")
        if isinstance(self.criterion, type) or not (
            callable(self.criterion) or isinstance(self.criterion, Criterion)
        ):
            raise TPVError(
                f"criterion={self.criterion!r}: give tpv.pruning.TPVImportance(), JBR(), JC() or an "
                "importance of Torch-Pruning."
            )
        if not self.data:
            raise TPVError("data is empty: it gave no batch.")
        object.__setattr__(self, "example", ends(self.data[0], batch_size(self.data[0])))

    @property
    def output(self) -> OutputSpec:
        """What of the predictions counts."""
        return self.criterion.output if isinstance(self.criterion, Criterion) else "logits"

    @property
    def members(self) -> Members:
        """Whose weights count as a channel's."""
        return self.criterion.members if isinstance(self.criterion, Criterion) else "consumers"

    def fingerprint(self) -> str:
        """Text that changes whenever a result would."""
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        asked = {
            name: value
            for name, value in arguments.items()
            if name not in ("model", "data", "test", "example")
        }
        return fingerprint(self.model, self.data, self.test, asked)
