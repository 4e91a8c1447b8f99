"""Copies of a network with the channels of groups zeroed, or in another order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

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
        gone = torch.tensor(removed[group.name])
        for member in group.members:
            for channels in _channels_first(copied, member) if member.role in roles else ():
                rows = channels.flatten(0, 1).clone()
                rows[member.index[torch.isin(member.channel, gone)]] = 0
                channels.copy_(rows.reshape(channels.shape))
    return copied


def permuted(model: nn.Module, groups: Sequence[ChannelGroup]) -> nn.Module:
    """A copy with the channels of these groups in a random order, in every weight that has them.

    Raises:
        TPVError: for a layer that has not the same number of positions for each channel.
    """
    copied = own_copy(model)
    for group in groups:
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(group.width))
        order = order.flip(0) if torch.equal(order, torch.arange(group.width)) else order
        for member in group.members:
            positions = member.index[member.channel.argsort(stable=True)]
            if len(positions) % group.width:
                raise TPVError(f"the channels of {member.module} cannot be told apart")
            positions = positions.reshape(group.width, -1)
            for channels in _channels_first(copied, member):
                rows = channels.flatten(0, 1).clone()
                rows[positions] = rows[positions[order]]
                channels.copy_(rows.reshape(channels.shape))
    return copied


def _channels_first(model: nn.Module, member: Member) -> Iterator[Tensor]:
    """Views (groups, channels of each, ...) of a member's tensors."""
    if member.role == "parameter":
        parameter = model.get_parameter(member.module).detach()
        yield parameter.movedim(channel_axis(parameter), 0).unsqueeze(0)
        return
    layer, consumes = model.get_submodule(member.module), member.role == "consumer"
    grouped, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    own = [layer.weight] if consumes else [*layer.parameters(False), *layer.buffers(False)]
    for tensor in (t.detach() for t in own if isinstance(t, Tensor) and t.ndim):
        if isinstance(layer, nn.Embedding):
            yield tensor.T.unsqueeze(0)
        elif consumes != transposed and tensor.ndim > 1:
            yield tensor.unflatten(0, (grouped, -1)).movedim(2, 1)
        else:
            yield tensor.unsqueeze(0)
