"""Copies of a network with channels removed, zeroed or in another order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.model.twin import make_twin
from tpv.pruning.channels.groups import ChannelGroup, Member, Role, channel_axis
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
        for m in group.members:
            known = positions_left.get((m.module, m.role), torch.ones(0, dtype=torch.bool))
            more = torch.ones(max(0, int(m.index.max()) + 1 - len(known)), dtype=torch.bool)
            positions_left[m.module, m.role] = torch.cat([known, more])
            positions_left[m.module, m.role][m.positions(removed.get(group.name, ()))] = False
    return positions_left


def zeroed(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Removed, roles: Collection[Role]
) -> nn.Module:
    """A copy with zeros at the removed channels, in the members of these roles."""
    copied = own_copy(model)
    for group in groups:
        for member in group.members:
            for channels in _of_member(copied, member) if member.role in roles else ():
                _put(channels, member.positions(removed[group.name]), 0)
    return copied


def masks(model: nn.Module, groups: Sequence[ChannelGroup], removed: Removed) -> dict[str, Tensor]:
    """Masks of the weights that take channels as inputs, False for the removed ones."""
    by_weight: dict[str, Tensor] = {}
    for group in groups:
        for member in group.scored_members("consumers") if removed.get(group.name) else ():
            layer: Any = model.get_submodule(member.module)
            mask = torch.ones_like(layer.weight, dtype=torch.bool)
            mask = by_weight.setdefault(f"{member.module}.weight", mask)
            zero_inputs(layer, mask, member.positions(removed[group.name]))
    return by_weight


def zero_inputs(layer: nn.Module, weight: Tensor, positions: Tensor) -> None:
    """Zeros, in place, at positions along the input axis of a layer's weight or a mask of its shape."""
    _put(_channels_first(layer, weight, consumes=True), positions, 0)


def permuted(model: nn.Module, groups: Sequence[ChannelGroup]) -> nn.Module:
    """A copy with the channels of these groups in a random order, in every weight that has them."""
    copied = own_copy(model)
    for group in groups:
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(group.width))
        order = order.flip(0) if torch.equal(order, torch.arange(group.width)) else order
        for member in group.members:
            positions = member.index[member.channel.argsort(stable=True)]
            if len(positions) % group.width:
                raise TPVError(f"the channels of {member.module} cannot be told apart")
            positions = positions.reshape(group.width, -1)
            for channels in _of_member(copied, member):
                _put(channels, positions, channels.flatten(0, 1)[positions[order]])
    return copied


def _put(channels: Tensor, positions: Tensor, values: Tensor | float) -> None:
    """Set rows of a view (groups, channels of each, ...), counted over all groups."""
    rows = channels.flatten(0, 1).clone()
    rows[positions] = values
    channels.copy_(rows.reshape(channels.shape))


def _of_member(model: nn.Module, member: Member) -> Iterator[Tensor]:
    """Views (groups, channels of each, ...) of a member's tensors."""
    if member.role == "parameter":
        parameter = model.get_parameter(member.module).detach()
        yield parameter.movedim(channel_axis(parameter), 0).unsqueeze(0)
        return
    layer, consumes = model.get_submodule(member.module), member.role == "consumer"
    own = [layer.weight] if consumes else [*layer.parameters(False), *layer.buffers(False)]
    for tensor in (t.detach() for t in own if isinstance(t, Tensor) and t.ndim):
        yield _channels_first(layer, tensor, consumes=consumes)


def _channels_first(layer: Any, tensor: Tensor, *, consumes: bool) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return tensor.T.unsqueeze(0)
    if consumes != getattr(layer, "transposed", False) and tensor.ndim > 1:
        by_group: Tensor = tensor.unflatten(0, (getattr(layer, "groups", 1), -1))
        return by_group.movedim(2, 1)
    return tensor.unsqueeze(0)
