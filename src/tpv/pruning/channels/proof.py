"""A proof that a traced group is right: without channels the network computes what it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.batches import call_model, map_tensors
from tpv.model.float64 import Float64Everywhere
from tpv.model.linearization import Forward
from tpv.model.outputs import outputs_tensor
from tpv.pruning.channels.groups import ChannelGroup, Role
from tpv.pruning.channels.surgery import own_copy, permuted, remove, zeroed

WRONG = "computes something else"
_NORMS = (nn.LayerNorm, nn.GroupNorm)
_CONSUMERS: tuple[Role, ...] = ("consumer",)
_WITH_CHANNELS: tuple[Role, ...] = ("consumer", "producer", "parameter")
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Differences that rounding causes, relative to the largest output."""


@torch.no_grad()
def problems(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> dict[str, str]:
    """Group → what happens when channels are removed, for groups where something is amiss.

    A network without the first, a middle, the last and a random channel must compute, in float64, what it
    does with zeros in their place, to 1e-6 of what the removal changes. Where statistics over channels change
    with them (LayerNorm, GroupNorm, norms by hand), it must run, and the unpruned network must compute the
    same with the group's channels in another order. All groups are tried at once, then each by itself.

    Cost: five forward passes of the example where all is well, else four for each group.
    """
    run = forward or call_model
    try:
        precise = own_copy(model).double()
        with Float64Everywhere():
            doubled = map_tensors(example, lambda t: t.double() if t.is_floating_point() else t)
            outputs_tensor(run(precise, doubled))
    except Exception:  # it has casts of its own
        return _problems(model, example, groups, forward)
    with Float64Everywhere():
        return _problems(precise, doubled, groups, forward)


def _problems(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None
) -> dict[str, str]:
    mixed = [g for g in groups if _is_normed(model, g)]
    plain = [g for g in groups if g not in mixed]
    if not any(_problem(model, example, some, forward) for some in (plain, mixed)):
        return {}
    each = {group.name: _problem(model, example, [group], forward) for group in groups}
    return {name: problem for name, problem in each.items() if problem is not None}


def _problem(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None
) -> str | None:
    """None, or what is wrong when channels of each group are removed."""
    if not groups:
        return None
    run, removed = forward or call_model, {group.name: _some_channels(group) for group in groups}
    try:
        before = outputs_tensor(run(model, example))
        after = outputs_tensor(run(remove(model, example, groups, removed, forward), example))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the model does not run without one of its channels ({reason[:120]})"
    if after.shape != before.shape:
        return "its channels are the model's outputs"
    silenced = outputs_tensor(run(zeroed(model, groups, removed, _CONSUMERS), example))
    rounding = _ROUNDING.get(before.dtype, 0.1) * silenced.abs().max()

    def agree(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() <= 1e-6 * (silenced - before).abs().max() + rounding)

    if agree(after, silenced):
        return None
    if agree(after, outputs_tensor(run(zeroed(model, groups, removed, _WITH_CHANNELS), example))):
        return "its channels are multiplied outside of a layer too, which no score counts"
    try:
        reordered = outputs_tensor(run(permuted(model, groups), example))
    except TPVError as error:
        return str(error)
    return None if (reordered - before).abs().max() <= rounding else WRONG


def _some_channels(group: ChannelGroup) -> list[int]:
    """The first, a middle, the last and a random one; at least one stays."""
    width = group.width
    random = int(torch.randint(width, (), generator=torch.Generator().manual_seed(width)))
    return list(dict.fromkeys((width - 1, 0, random, width // 2)))[: width - 1]


def _is_normed(model: nn.Module, group: ChannelGroup) -> bool:
    modules = dict(model.named_modules())
    return any(isinstance(modules.get(m.module), _NORMS) for m in group.members)
