"""What a network costs as a function of the widths of its groups, and how much of that is to stay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor, nn

from tpv.allocation.knapsack import Cost
from tpv.common.errors import TPVError
from tpv.common.options import require_number
from tpv.model.costs import module_macs, parameters
from tpv.model.linearization import Forward
from tpv.pruning.channels.groups import ChannelGroup, channel_axis

Unit = Literal["macs", "params"]
_Axis = list[tuple[tuple[int, ...], int]]
"""The length of an axis as a sum: (the group it belongs to or nothing, positions for each channel)."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Costs of a network whose groups have given widths.

    Attributes:
        unit: ``"macs"``, multiply-accumulates for one example; ``"params"``; or the user's own.
        costs: terms in the widths of the groups.
        total: with all channels.
    """

    unit: str
    costs: tuple[Cost, ...]
    total: float

    def of(self, widths: Sequence[int]) -> float:
        """The cost for these widths."""
        return float(sum((cost.of(widths) for cost in self.costs), Fraction(0)))


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
        """The cost in the widths of some groups: one of the ``known``, or of ``costs``, in which groups are
        numbered as in ``everything``.
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


def budget(
    model: nn.Module, batch: Any, groups: Sequence[ChannelGroup], unit: Unit, forward: Forward | None = None
) -> Budget:
    """MACs or parameters as a polynomial in the widths: a convolution's are in proportion to its inputs times
    its outputs.

    Cost: a forward pass of one example for MACs.
    """
    amounts = module_macs(model, batch, forward) if unit == "macs" else parameters(model)
    uses, total = _uses(groups), sum(amounts.values())
    costs: list[Cost] = []
    for name, p in model.named_parameters() if unit == "params" else ():
        if axes := uses.get((name, "parameter")):
            full = p.shape[channel_axis(p)]
            amounts[name.rpartition(".")[0]] -= p.numel()
            costs += _terms(p.numel(), [(_axis(axes, full, groups), full)])
    for name, amount in amounts.items():
        module = model.get_submodule(name)
        sides = [(_axis(uses.get((name, role), {}), full, groups), full) for role, full in _sides(module)]
        own_bias = unit == "params" and len(sides) == 2 and isinstance(module.bias, Tensor)
        bias = module.bias.numel() if own_bias else 0  # type: ignore[operator]
        costs += _terms(amount - bias, sides) + (_terms(bias, sides[1:]) if bias else [])
    return Budget(unit, tuple(costs), total)


def _uses(groups: Sequence[ChannelGroup]) -> dict[tuple[str, str], dict[int, int]]:
    """(Module, role) → {group: positions for each of its channels}."""
    uses: dict[tuple[str, str], dict[int, int]] = {}
    for i, group in enumerate(groups):
        for member in group.members:
            uses.setdefault((member.module, member.role), {})[i] = len(member.index) // group.width
    return uses


def _sides(module: nn.Module) -> list[tuple[str, int]]:
    """The axes that a module's cost is in proportion to: the role of their channels, and full lengths."""
    if isinstance(module, nn.Linear):
        return [("consumer", module.in_features), ("producer", module.out_features)]
    if isinstance(module, nn.modules.conv._ConvNd):
        sides = [("consumer", module.in_channels), ("producer", module.out_channels)]
        return sides[1:] if module.groups == module.out_channels > 1 else sides
    weight = getattr(module, "weight", None)
    return [("producer", weight.shape[-1])] if isinstance(weight, Tensor) and weight.ndim else []


def _axis(uses: dict[int, int], full: int, groups: Sequence[ChannelGroup]) -> _Axis:
    """The length of an axis: a constant and a multiple of each group's width."""
    constant = full - sum(positions * groups[g].width for g, positions in uses.items())
    return [((g,), positions) for g, positions in uses.items()] + ([((), constant)] if constant else [])


def _terms(amount: int, sides: Sequence[tuple[_Axis, int]]) -> list[Cost]:
    """An amount at full lengths, in proportion to the lengths of its sides."""
    each, costs = Fraction(amount, math.prod(full for _, full in sides)), []
    for parts in itertools.product(*(axis for axis, _ in sides)):
        factor = each * math.prod(n for _, n in parts)
        groups = tuple(g for term, _ in parts for g in term)
        costs.append(Cost(groups, int(factor) if factor.denominator == 1 else float(factor)))
    return costs
