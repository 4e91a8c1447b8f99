"""How much of a network is to stay, in which unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tpv.allocation.knapsack import Cost
from tpv.common.errors import TPVError
from tpv.common.options import require_number
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.widths.budget import Budget


@dataclass(frozen=True)
class Target:
    """The share of a cost that is to stay.

    Args:
        unit: ``"macs"``, multiply-accumulates; ``"params"``, parameters; any other name with ``costs`` of
            your own.
        keep: the share of the unpruned network's cost, in (0, 1).
        costs: terms in the widths of the groups, such as tables of measured latencies, in the order of
            :func:`tpv.integrations.torch_pruning.channel_groups`.

    Raises:
        TPVError: for other values.

    Example:
        >>> from tpv.pruning import Target
        >>> Target.parse("macs=0.5")
        Target(unit='macs', keep=0.5)
    """

    unit: str
    keep: float
    costs: Sequence[Cost] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_number("Target", "keep", self.keep, 0, 1, open_low=True)
        if self.costs is None and self.unit not in ("macs", "params"):
            raise TPVError(
                f"Target(unit={self.unit!r}): give 'macs' or 'params', or costs=[tpv.pruning.Cost(...), ...] "
                "of your own."
            )

    @staticmethod
    def parse(text: str) -> Target:
        """From ``"macs=0.5"`` or ``"params=0.3"``.

        Raises:
            TPVError: for other text.
        """
        unit, _, share = text.partition("=")
        try:
            keep = float(share)
        except ValueError:
            raise TPVError(
                f"target {text!r} cannot be read: write the share to keep, 'macs=0.5' or 'params=0.5'."
            ) from None
        return Target(unit.strip(), keep)

    def budget(
        self, groups: Sequence[ChannelGroup], known: Mapping[str, Budget], everything: Sequence[ChannelGroup]
    ) -> Budget:
        """The cost of a network as a function of the widths of some of its groups; the others keep theirs.

        Args:
            groups: those that may lose channels.
            known: the budgets of MACs and parameters.
            everything: all groups, which ``costs`` count.

        Raises:
            TPVError: for costs of groups that there are not.
        """
        if self.costs is None:
            return known[self.unit]
        full = [group.width for group in everything]
        if unknown := [g for cost in self.costs for g in cost.groups if g >= len(full)]:
            raise TPVError(
                f"Target(costs=...) has a cost of group {unknown[0]}, and the network has {len(full)}, "
                "counted from 0."
            )
        names = [group.name for group in groups]
        place = {i: names.index(group.name) for i, group in enumerate(everything) if group.name in names}
        total = sum(cost.of(full) for cost in self.costs)
        return Budget(self.unit, tuple(_among(cost, place, full) for cost in self.costs), float(total))


def _among(cost: Cost, place: Mapping[int, int], full: Sequence[int]) -> Cost:
    """The cost in terms of the groups that have a place, with the others at their full widths."""
    own = tuple(place[g] for g in cost.groups if g in place)
    fixed = [g for g in cost.groups if g not in place]
    if not isinstance(cost.amount, Mapping):
        return Cost(own, cost.amount * math.prod(full[g] for g in fixed))
    table = {}
    for sizes, amount in cost.amount.items():
        size = dict(zip(cost.groups, sizes, strict=True))
        if all(size[g] == full[g] for g in fixed):
            table[tuple(size[g] for g in cost.groups if g in place)] = amount
    return Cost(own, table)
