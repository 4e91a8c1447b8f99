"""Removing channels for good."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.pruning.channels.groups import ChannelGroup, Member, Role
from tpv.pruning.channels.tracing import group_of, trace

Removed = Mapping[str, Sequence[int]]
"""Group → removed channels (sets of tied ones), numbered as in the unpruned model."""


@dataclass(frozen=True, eq=False)
class Surgery:
    """A pruned copy of a model.

    Attributes:
        model: the copy.
        history: Torch-Pruning's pruning history, ``[[module, whether its outputs, indices], ...]``.
    """

    model: nn.Module
    history: list[list[Any]]


def remove(
    model: nn.Module,
    example: Any,
    groups: Sequence[ChannelGroup],
    removed: Removed,
    forward: Forward | None = None,
) -> Surgery:
    """A copy of the model without these channels.

    Raises:
        TPVError: if a group would be left empty.
    """
    pruned = copy.deepcopy(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    graph = trace(pruned, example, forward)
    for group in groups:
        channels = [c for unit in sorted(removed.get(group.name, ())) for c in group.channels(unit)]
        if len(channels) >= group.width * group.tied:
            raise TPVError(f"{group.name} would lose all its channels: at least one must stay.")
        if channels:
            group_of(graph, group.name, channels).prune()
    for name, p in pruned.named_parameters():
        p.requires_grad_(name not in frozen)
    return Surgery(pruned, [list(entry) for entry in graph.pruning_history()])


def remaining(groups: Sequence[ChannelGroup], removed: Removed) -> list[ChannelGroup]:
    """The groups as they are in the pruned model: positions along axes that have become shorter."""
    kept = _kept(groups, removed)
    found = []
    for group in groups:
        stays = torch.tensor(
            [c for c in range(group.width) if c not in set(removed.get(group.name, ()))], dtype=torch.long
        )
        channels = torch.full((group.width,), -1).scatter_(0, stays, torch.arange(len(stays)))
        members = []
        for m in group.members:
            there = channels[m.channel] >= 0
            positions = kept[m.module, m.role].long().cumsum(0) - 1
            members.append(Member(m.module, m.role, positions[m.index[there]], channels[m.channel[there]]))
        found.append(ChannelGroup(group.name, len(stays), tuple(members), group.tied))
    return found


def kept_outputs(groups: Sequence[ChannelGroup], removed: Removed) -> dict[str, Tensor]:
    """Module → the output channels of the unpruned model that it still has, for modules that lost some."""
    kept = _kept(groups, removed)
    return {name: keep for (name, role), keep in kept.items() if role == "producer" and not keep.all()}


def _kept(groups: Sequence[ChannelGroup], removed: Removed) -> dict[tuple[str, Role], Tensor]:
    """(Module, role) → which positions of the axis stay; positions beyond the last that a group knows are
    left out.
    """
    found: dict[tuple[str, Role], Tensor] = {}
    for group in groups:
        gone = torch.tensor(sorted(removed.get(group.name, ())), dtype=torch.long)
        for m in group.members:
            length = int(m.index.max()) + 1
            keep = found.get((m.module, m.role), torch.ones(0, dtype=torch.bool))
            keep = torch.cat([keep, torch.ones(max(0, length - len(keep)), dtype=torch.bool)])
            keep[m.index[torch.isin(m.channel, gone)]] = False
            found[m.module, m.role] = keep
    return found
