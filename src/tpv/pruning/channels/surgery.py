"""Removing channels for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.model.twin import make_twin
from tpv.pruning.channels.groups import ChannelGroup, Member, Role
from tpv.pruning.channels.tracing import group_of, trace

Removed = Mapping[str, Sequence[int]]
"""Group → removed channels (sets of tied ones), numbered as in the unpruned model."""


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with weights of its own; functions inside that use the model use the copy."""
    copied = make_twin(model).model
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.clone()
    for module in copied.modules():
        tensors = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        vars(module).update({key: tensor.detach().clone() for key, tensor in tensors.items()})
    return copied


def remove(
    model: nn.Module,
    example: Any,
    groups: Sequence[ChannelGroup],
    removed: Removed,
    forward: Forward | None = None,
) -> nn.Module:
    """A copy of the model without these channels; a forward pass of the example traces it."""
    pruned = own_copy(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    graph = trace(pruned, example, forward)
    for group in groups:
        channels = [c for unit in sorted(removed.get(group.name, ())) for c in group.channels(unit)]
        if len(channels) >= group.width * group.tied:
            raise TPVError(f"{group.name} would lose all its channels: at least one must stay.")
        if channels:
            group_of(graph, group.name, channels).prune()
    for name, p in pruned.named_parameters():
        p.requires_grad_(name not in frozen and p.is_floating_point())
    return pruned


def remaining_channels(group: ChannelGroup, removed: Removed) -> list[int]:
    """The channels of a group that are still there, numbered as in the unpruned model."""
    gone = set(removed.get(group.name, ()))
    return [c for c in range(group.width) if c not in gone]


def remaining(groups: Sequence[ChannelGroup], removed: Removed) -> list[ChannelGroup]:
    """The groups as they are in the pruned model: positions along axes that have become shorter."""
    positions_left = _kept(groups, removed)
    narrower = []
    for group in groups:
        stays = remaining_channels(group, removed)
        channels = torch.full((group.width,), -1)
        channels[stays] = torch.arange(len(stays))
        members = []
        for m in group.members:
            there = channels[m.channel] >= 0
            positions = positions_left[m.module, m.role].long().cumsum(0) - 1
            members.append(Member(m.module, m.role, positions[m.index[there]], channels[m.channel[there]]))
        narrower.append(ChannelGroup(group.name, len(stays), tuple(members), group.tied))
    return narrower


def kept_outputs(groups: Sequence[ChannelGroup], removed: Removed) -> dict[str, Tensor]:
    """Module → the output channels of the unpruned model that it still has, for modules that lost some."""
    positions_left = _kept(groups, removed)
    return {
        name: keep for (name, role), keep in positions_left.items() if role == "producer" and not keep.all()
    }


def _kept(groups: Sequence[ChannelGroup], removed: Removed) -> dict[tuple[str, Role], Tensor]:
    """(Module, role) → which positions of the axis stay, up to the last that a group knows."""
    positions_left: dict[tuple[str, Role], Tensor] = {}
    for group in groups:
        gone = torch.tensor(sorted(removed.get(group.name, ())), dtype=torch.long)
        for m in group.members:
            known = positions_left.get((m.module, m.role), torch.ones(0, dtype=torch.bool))
            more = torch.ones(max(0, int(m.index.max()) + 1 - len(known)), dtype=torch.bool)
            positions_left[m.module, m.role] = torch.cat([known, more])
            positions_left[m.module, m.role][m.index[torch.isin(m.channel, gone)]] = False
    return positions_left
