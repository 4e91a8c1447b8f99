"""What is removed with a channel: the axes of a network's weights that share their channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tpv.common.errors import TPVError

Role = Literal["consumer", "producer", "parameter", "opaque"]
Parameters = Literal["consumers", "all"]


def channel_axis(parameter: Tensor) -> int:
    """The axis of a parameter outside of a layer that counts channels for Torch-Pruning."""
    return max((i for i, n in enumerate(parameter.shape) if n > 1), default=parameter.ndim - 1)


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one module's weights.

    Attributes:
        module: its name in the model.
        role: ``"consumer"``: the module takes the channels as inputs (convolutions, linear layers);
            ``"producer"``: it computes them or passes them on (convolutions, linear layers, norms, depthwise
            convolutions, embeddings); ``"parameter"``: a parameter outside of a layer, added or multiplied
            elementwise; ``"opaque"``: an operation that cannot be scored by channel.
        index: (P,) positions along the module's axis.
        channel: (P,) the group's channel that each position belongs to; a linear layer behind a flattening
            has several for each.
    """

    module: str
    role: Role
    index: Tensor
    channel: Tensor

    def positions(self, channels: Sequence[int] | Tensor) -> Tensor:
        """The positions of some of the group's channels."""
        return self.index[torch.isin(self.channel, torch.as_tensor(channels, dtype=torch.long))]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can be removed, and everything that is removed with each.

    Attributes:
        name: of the module whose output channels these are (the first, where several are coupled by
            additions).
        width: number of channels; where layers need them removed in tied sets (grouped convolutions), number
            of sets.
        members: the axes.
        tied: how many channels make a set.
    """

    name: str
    width: int
    members: tuple[Member, ...] = field(repr=False)
    tied: int = 1

    def scored_members(self, parameters: Parameters) -> tuple[Member, ...]:
        """The members whose weights a score counts; a TPVError says :meth:`why_not_scored`."""
        if reason := self.why_not_scored(parameters):
            raise TPVError(reason)
        return self.members if parameters == "all" else self.consumers

    def why_not_scored(self, parameters: Parameters) -> str | None:
        """The sentence for a group without members to score, or with one that cannot be scored by channel."""
        if opaque := [m.module for m in self.members if m.role == "opaque"]:
            return (
                f"the channels of {self.name} go through {', '.join(opaque[:3])}, whose weights cannot be "
                "scored by channel: leave this group out."
            )
        raw = [m.module for m in self.members if m.role == "parameter"]
        if raw and parameters == "all":
            return (
                f"the channels of {self.name} go through {raw[0]}, a parameter outside of a layer, which "
                'cannot be scored by channel: use parameters="consumers", or leave this group out.'
            )
        if not (self.members if parameters == "all" else self.consumers):
            other = 'score them with parameters="all", or ' if self.members else ""
            return (
                f"no convolution or linear layer takes the channels of {self.name} as inputs: {other}leave "
                "this group out."
            )
        return None

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members that take the channels as inputs."""
        return tuple(m for m in self.members if m.role == "consumer")

    def channels(self, unit: int) -> list[int]:
        """The ``tied`` channels of a set, by their numbers in the module that gives the group its name."""
        return [unit + i * self.width for i in range(self.tied)]
