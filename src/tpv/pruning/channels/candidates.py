"""The groups of channels that a pruning may remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.pruning.channels.conversion import channel_group
from tpv.pruning.channels.groups import ChannelGroup, Parameters
from tpv.pruning.channels.tracing import all_groups, trace
from tpv.pruning.channels.verification import verified


@dataclass(frozen=True, eq=False)
class Candidates:
    """Groups that can be scored and removed, all groups, and why the others are left alone."""

    groups: list[ChannelGroup]
    everything: list[ChannelGroup]
    excluded: dict[str, str]


def candidates(
    model: nn.Module, example: Any, ignore: Sequence[str], parameters: Parameters, forward: Forward | None
) -> Candidates:
    """What may be removed from a model.

    Args:
        ignore: glob patterns of groups to leave alone.
        parameters: whose scores are needed.

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
    return Candidates(groups, everything, excluded)


def _why_not(group: ChannelGroup, ignore: Sequence[str], parameters: Parameters) -> str | None:
    if any(fnmatchcase(group.name, glob) for glob in ignore):
        return "ignored"
    try:
        group.scored_members(parameters)
    except TPVError as error:
        return str(error)
    return None
