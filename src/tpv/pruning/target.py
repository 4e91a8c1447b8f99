"""How much of a network is to stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tpv._errors import TPVError
from tpv._options import require_number
from tpv.pruning.allocation import Cost
from tpv.pruning.budget import Budget
from tpv.pruning.groups import ChannelGroup


@dataclass(frozen=True)
class Target:
    """The share of a cost that is to stay.

    Args:
        unit: ``"macs"``, multiply-accumulates; ``"params"``, parameters; any other name with ``costs`` of your own.
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
            raise TPVError(f"Target(unit={self.unit!r}): give 'macs' or 'params', or costs=[tpv.pruning.Cost(...), ...] of your own.")

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
            raise TPVError(f"target {text!r} cannot be read: write the share to keep, 'macs=0.5' or 'params=0.5'.") from None
        return Target(unit.strip(), keep)

    def budget(self, groups: Sequence[ChannelGroup], known: Mapping[str, Budget]) -> Budget:
        """The cost of a network as a function of the widths of its groups; ``known`` has MACs and parameters."""
        if self.costs is None:
            return known[self.unit]
        total = sum(cost.of([group.width for group in groups]) for cost in self.costs)
        return Budget(self.unit, tuple(self.costs), float(total))
