"""The groups of channels that a pruning may remove: a traced graph can be wrong, so each is verified."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.pruning.channels.conversion import channel_group
from tpv.pruning.channels.groups import ChannelGroup, Parameters
from tpv.pruning.channels.proof import WRONG, problems
from tpv.pruning.channels.tracing import all_groups, trace


def candidates(
    model: nn.Module, example: Any, ignore: Sequence[str], parameters: Parameters, forward: Forward | None
) -> tuple[list[ChannelGroup], list[ChannelGroup], dict[str, str]]:
    """Groups that can be scored and removed, all groups, and why the others are left alone."""
    everything = [channel_group(group) for group in all_groups(trace(model, example, forward))]
    for glob in ignore:
        if not any(fnmatchcase(group.name, glob) for group in everything):
            names = ", ".join(group.name for group in everything)
            raise TPVError(f"ignore={glob!r} matches no group of channels: there are {names}.")
    excluded: dict[str, str] = {}
    for group in everything:
        ignored = any(fnmatchcase(group.name, glob) for glob in ignore)
        if reason := "ignored" if ignored else group.why_not_scored(parameters):
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


def verified(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups whose channels can be removed, by :func:`problems`, and why the others cannot."""
    excluded = {g.name: "has a single channel" for g in groups if g.width == 1}
    shared = _with_shared_weights(model)
    for g in groups:
        if tied := [m.module for m in g.members if m.module in shared]:
            excluded[g.name] = f"the weights of {tied[0]} are used by other layers too"
    usable = [g for g in groups if g.name not in excluded]
    failed = problems(model, example, usable, forward)
    if wrong := [name for name, problem in failed.items() if problem == WRONG]:
        raise TPVError(wrongly_traced(wrong[0], f"leave such groups out with ignore={wrong!r}"))
    return [g for g in usable if g.name not in failed], excluded | failed


def wrongly_traced(name: str, otherwise: str) -> str:
    """The sentence for a group that is ``WRONG``."""
    return (
        f"the traced graph is wrong at {name}: without some of its channels the network computes something "
        "else than with zeros in their place. For shortcuts that pad with zero channels call "
        "tpv.pruning.replace_padding_shortcuts(model, example) first (they must be modules of their own); or "
        f"{otherwise}."
    )


def _with_shared_weights(model: nn.Module) -> set[str]:
    """Modules whose parameters have two names; Torch-Pruning would give each a copy."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name.rpartition(".")[0])
    return {module for modules in names.values() if len(modules) > 1 for module in modules}
