"""What goes when a channel goes: the axes of a network's weights that share their channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tpv.common.errors import TPVError

Role = Literal["consumer", "producer", "parameter", "opaque"]
Members = Literal["consumers", "all", "producers"]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one module's weights.

    Attributes:
        module: its name in the model.
        role: ``"consumer"``: the module reads the channels as inputs (convolutions, linear layers);
            ``"producer"``: it writes or passes them on (convolutions, linear layers, norms, depthwise
            convolutions, embeddings); ``"parameter"``: it is no module but a parameter outside of one, added
            or multiplied elementwise; ``"opaque"``: what cannot be scored by channel.
        index: (P,) positions along the module's axis.
        channel: (P,) the group's channel that each position belongs to; a linear layer behind a flattening
            has several for each.
    """

    module: str
    role: Role
    index: Tensor
    channel: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can be removed, and everything that goes with each.

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

    def chosen(self, members: Members) -> tuple[Member, ...]:
        """The members whose weights count as the channel's.

        Raises:
            TPVError: if there is none.
        """
        opaque = [m.module for m in self.members if m.role == "opaque"]
        if opaque:
            raise TPVError(
                f"the channels of {self.name} go through {', '.join(opaque[:3])}, "
                "whose weights cannot be scored by channel: leave this group out."
            )
        raw = [m.module for m in self.members if m.role == "parameter"]
        if raw and members != "consumers":
            raise TPVError(
                f"the channels of {self.name} go through {raw[0]}, a parameter outside of a layer, which "
                "cannot be scored by channel: "
                'use members="consumers", or leave this group out.'
            )
        found = self.members if members == "all" else tuple(m for m in self.members if m.role == members[:-1])
        if not found:
            raise TPVError(
                f"no convolution or linear layer {'reads' if members == 'consumers' else 'writes'} the "
                f"channels of {self.name}: "
                f'score them with members="{"all" if self.members else "producers"}", or leave this group out.'
            )
        return found

    def channels(self, unit: int) -> list[int]:
        """The channels of a set: those of the root module, ``tied`` of them."""
        return [unit + i * self.width for i in range(self.tied)]
