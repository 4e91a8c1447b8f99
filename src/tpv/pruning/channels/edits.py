"""Weights with the channels of groups zeroed, or in another order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import ChannelGroup, Member, Role, channel_axis
from tpv.pruning.channels.surgery import Removed, own_copy


def zeroed(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Removed, roles: Collection[Role]
) -> nn.Module:
    """A copy with zeros at the removed channels, in the members of these roles."""
    copied = own_copy(model)
    for group in groups:
        for member in group.members:
            for channels in _of_member(copied, member) if member.role in roles else ():
                _put(channels, positions_of(member, removed[group.name]), 0)
    return copied


def masks(model: nn.Module, groups: Sequence[ChannelGroup], removed: Removed) -> dict[str, Tensor]:
    """Masks of the weights that take channels as inputs, False for the removed ones."""
    by_weight: dict[str, Tensor] = {}
    for group in groups:
        for member in group.scored_members("consumers") if removed.get(group.name) else ():
            layer: Any = model.get_submodule(member.module)
            mask = torch.ones_like(layer.weight, dtype=torch.bool)
            mask = by_weight.setdefault(f"{member.module}.weight", mask)
            zero_inputs(layer, mask, positions_of(member, removed[group.name]))
    return by_weight


def zero_inputs(layer: nn.Module, weight: Tensor, positions: Tensor) -> None:
    """Zeros, in place, at positions along the input axis of a layer's weight or a mask of its shape."""
    _put(_channels_first(layer, weight, consumes=True), positions, 0)


def positions_of(member: Member, channels: Sequence[int] | Tensor) -> Tensor:
    """The positions of some channels along a member's axis."""
    return member.index[torch.isin(member.channel, torch.as_tensor(channels, dtype=torch.long))]


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
