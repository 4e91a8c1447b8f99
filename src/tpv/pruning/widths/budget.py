"""What a network costs as a function of the widths of its groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor, nn

from tpv.allocation.knapsack import Cost
from tpv.model.costs import module_macs, parameters
from tpv.model.linearization import Forward
from tpv.pruning.channels.groups import ChannelGroup

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
        if axes := uses.get((name, "parameter")):  # such as a class token: channels are its last axis
            amounts[name.rpartition(".")[0]] -= p.numel()
            costs += _terms(p.numel(), [(_axis(axes, p.shape[-1], groups), p.shape[-1])])
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
