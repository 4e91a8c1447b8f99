"""The groups of channels that a pruning may remove: those whose removal computes what it should, because a
traced graph can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.jacobian.formulas.base import tolerance
from tpv.model.batches import call_model
from tpv.model.linearization import Forward
from tpv.model.outputs import outputs_tensor
from tpv.pruning.channels.conversion import channel_group
from tpv.pruning.channels.groups import ChannelGroup, Parameters
from tpv.pruning.channels.surgery import masks, own_copy, remove
from tpv.pruning.channels.tracing import all_groups, trace

WRONG = "computes something else"
_MIXING = (nn.LayerNorm, nn.GroupNorm)


def candidates(
    model: nn.Module, example: Any, ignore: Sequence[str], parameters: Parameters, forward: Forward | None
) -> tuple[list[ChannelGroup], list[ChannelGroup], dict[str, str]]:
    """Groups that can be scored and removed, all groups, and why the others are left alone; those that match
    a pattern in ``ignore`` are.

    Raises:
        TPVError: for a pattern to ignore that matches nothing; if no group is left; for a graph that is
            traced wrongly.
    """
    everything = [channel_group(group) for group in all_groups(trace(model, example, forward))]
    for glob in ignore:
        if not any(fnmatchcase(group.name, glob) for group in everything):
            names = ", ".join(group.name for group in everything)
            raise TPVError(f"ignore={glob!r} matches no group of channels: there are {names}.")
    excluded: dict[str, str] = {}
    for group in everything:
        if (reason := _why_not(group, ignore, parameters)) is not None:
            excluded[group.name] = reason
    fit = [group for group in everything if group.name not in excluded]
    groups, failed = verified(model, example, fit, forward)
    excluded |= failed
    if not groups:
        reasons = "; ".join(f"{name}: {why}" for name, why in excluded.items())
        raise TPVError(
            "no channel of the model can be removed "
            f"({reasons or 'it has no hidden convolution or linear layer'})."
        )
    return groups, everything, excluded


def _why_not(group: ChannelGroup, ignore: Sequence[str], parameters: Parameters) -> str | None:
    if any(fnmatchcase(group.name, glob) for glob in ignore):
        return "ignored"
    try:
        group.scored_members(parameters)
    except TPVError as error:
        return str(error)
    return None


def verified(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups whose channels can be removed, and why the others cannot.

    A network without a channel must compute what it does with zeros in its place. One channel of every group
    is removed at once; where that does not hold, group by group. Behind norms over channels, whose statistics
    change with a channel, it is only asked that the network runs and gives outputs of the same shape.

    Raises:
        TPVError: for a group whose removal runs but computes something else, as Torch-Pruning's graph of
            padding shortcuts does.

    Cost: four forward passes of the example where all is well, else two for each group.
    """
    excluded = {g.name: "has a single channel" for g in groups if g.width == 1}
    for g in groups:
        if tied := _with_shared_weights(model, g):
            excluded[g.name] = f"the weights of {tied[0]} are used by other layers too"
    usable = [g for g in groups if g.name not in excluded]
    failed = problems(model, example, usable, forward)
    if wrong := [name for name, problem in failed.items() if problem == WRONG]:
        raise TPVError(wrongly_traced(wrong[0], f"leave the group out with ignore={[wrong[0]]!r}"))
    return [g for g in usable if g.name not in failed], excluded | failed


def wrongly_traced(name: str, otherwise: str) -> str:
    """The sentence for a group that is ``WRONG``."""
    return (
        f"the traced graph is wrong at {name}: without one of its channels the network computes something "
        "else than with zeros in its place. For shortcuts that pad with zero channels call "
        "tpv.pruning.replace_padding_shortcuts(model, example) first (they must be modules of their own); or "
        f"{otherwise}."
    )


def problems(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> dict[str, str]:
    """Group → what happens when a channel is removed, for groups where something is amiss."""
    mixed = [g for g in groups if _is_mixed(model, g)]
    plain = [g for g in groups if g not in mixed]
    if not any(_problem(model, example, some, forward) for some in (plain, mixed)):
        return {}
    each = {group.name: _problem(model, example, [group], forward) for group in groups}
    return {name: problem for name, problem in each.items() if problem is not None}


@torch.no_grad()
def _problem(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None
) -> str | None:
    """None, or what is wrong when the last channel of each group is removed."""
    if not groups:
        return None
    run, removed = forward or call_model, {group.name: [group.width - 1] for group in groups}
    try:
        before = outputs_tensor(run(model, example))
        after = outputs_tensor(run(remove(model, example, groups, removed, forward), example))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the model does not run without one of its channels ({reason[:120]})"
    if after.shape != before.shape:
        return "its channels are the model's outputs"
    if any(_is_mixed(model, group) for group in groups):
        return None
    silenced = own_copy(model)
    for name, mask in masks(model, groups, removed).items():
        silenced.get_parameter(name).mul_(mask)
    expected = outputs_tensor(run(silenced, example))
    scale = expected.abs().max().clamp(min=1e-30)
    return None if (after - expected).abs().max() <= 10 * tolerance(after.dtype) * scale else WRONG


def _is_mixed(model: nn.Module, group: ChannelGroup) -> bool:
    modules = dict(model.named_modules())
    return any(isinstance(modules.get(m.module), _MIXING) for m in group.members)


def _with_shared_weights(model: nn.Module, group: ChannelGroup) -> list[str]:
    """Members whose parameters have two names; Torch-Pruning would give each a copy."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name.rpartition(".")[0])
    shared = {module for modules in names.values() if len(modules) > 1 for module in modules}
    return [m.module for m in group.members if m.module in shared]
