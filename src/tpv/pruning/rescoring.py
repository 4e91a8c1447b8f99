"""The value of every channel that is left, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import Removed, remaining
from tpv.pruning.channels.tracing import group_of, trace
from tpv.pruning.scores.cotangents import Frozen, freeze
from tpv.pruning.scores.criteria import Criterion
from tpv.pruning.scores.greedy import Terms
from tpv.pruning.scores.scoring import score
from tpv.pruning.task import PruningTask

Importance = Callable[[Any], Tensor]
"""Torch-Pruning's: a group → scores of its root channels."""


class Rescorer:
    """Scores pruned versions of a network by what the criterion keeps of the unpruned one."""

    def __init__(self, task: PruningTask, groups: Sequence[ChannelGroup]) -> None:
        self._task, self._groups = task, groups
        self._frozen: Frozen | None = None
        if isinstance(task.criterion, Criterion):
            self._frozen = freeze(task.model, task.data, task.criterion, forward=task.forward)

    def __call__(self, current: nn.Module, removed: Removed) -> tuple[dict[str, Tensor], Terms | None]:
        """Group → the values of the channels that are left, and the terms of criteria with interactions."""
        task, groups = self._task, remaining(self._groups, removed)
        if isinstance(task.criterion, Criterion):
            scores = score(
                current, task.data, groups, task.criterion,
                frozen=self._frozen, forward=task.forward, generator=task.config.generator,
            )  # fmt: skip
            return {name: group.value for name, group in scores.items()}, scores.terms
        torch.manual_seed(task.config.generator)  # for random importances; the caller's state is restored
        graph = trace(current, task.example, task.forward)
        return {group.name: _importance(task.criterion, graph, group) for group in groups}, None


def _importance(criterion: Importance, graph: Any, group: ChannelGroup) -> Tensor:
    """By an importance of Torch-Pruning."""
    everything = list(range(group.width * group.tied))
    try:
        values = criterion(group_of(graph, group.name, everything))
    except Exception as error:
        raise TPVError(
            f"the criterion failed on {group.name} ({type(error).__name__}: {error}). Importances that need "
            "gradients or do not know a layer's type cannot be used: give tpv.pruning.TPVImportance()."
        ) from error
    if not isinstance(values, Tensor) or values.numel() != len(everything):
        raise TPVError(
            f"the criterion gave no score for each of the {len(everything)} channels of {group.name}, but "
            f"{values!r:.80}."
        )
    return values.detach().double().cpu().reshape(group.tied, group.width).mean(0)
