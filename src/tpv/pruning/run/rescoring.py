"""The value of every channel that is left, by the criterion of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import remaining
from tpv.pruning.channels.tracing import group_of, trace
from tpv.pruning.run.plan import Importance, Plan
from tpv.pruning.scores.cotangents import Frozen, freeze
from tpv.pruning.scores.criteria import Criterion
from tpv.pruning.scores.greedy import Terms
from tpv.pruning.scores.scoring import score

Values = dict[str, Tensor]


class Judge:
    """Scores pruned versions of a network; what its criterion remembers of the unpruned one is frozen here.

    Args:
        plan: what is asked.
        groups: of the unpruned network.
    """

    def __init__(self, plan: Plan, groups: Sequence[ChannelGroup]) -> None:
        self._plan, self._groups = plan, groups
        self._frozen: Frozen | None = None
        if isinstance(plan.criterion, Criterion):
            self._frozen = freeze(plan.model, plan.data, plan.criterion, forward=plan.forward)

    def __call__(
        self, current: nn.Module, removed: Mapping[str, Sequence[int]]
    ) -> tuple[Values, Terms | None]:
        """Group → the values of the channels that are left, and the terms of criteria with interactions."""
        plan, groups = self._plan, remaining(self._groups, removed)
        if isinstance(plan.criterion, Criterion):
            found = score(
                current,
                plan.data,
                groups,
                plan.criterion,
                frozen=self._frozen,
                forward=plan.forward,
                generator=plan.generator,
            )
            return {name: scores.value for name, scores in found.items()}, found.terms
        torch.manual_seed(plan.generator)  # for importances that are random; the caller's state is restored
        graph = trace(current, plan.example, plan.forward)
        return {group.name: _importance(plan.criterion, graph, group) for group in groups}, None


def _importance(criterion: Importance, graph: Any, group: ChannelGroup) -> Tensor:
    """By an importance of Torch-Pruning."""
    everything = list(range(group.width * group.tied))
    whole = group_of(graph, group.name, everything)
    try:
        values = criterion(whole)
    except Exception as error:
        raise TPVError(
            f"the criterion failed on {group.name} ({type(error).__name__}: {error}). Importances that need "
            "gradients or do not "
            "know a layer's type cannot be used: give tpv.pruning.TPVImportance()."
        ) from error
    if not isinstance(values, Tensor) or values.numel() != len(everything):
        raise TPVError(
            f"the criterion gave no score for each of the {len(everything)} channels of {group.name}, but "
            f"{values!r:.80}."
        )
    return values.detach().double().cpu().reshape(group.tied, group.width).mean(0)
