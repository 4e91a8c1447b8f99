"""The groups of channels that a pruning may touch."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.tracing import all_groups, channel_group, trace
from tpv.pruning.channels.verification import verified
from tpv.pruning.run.plan import Plan


@dataclass(frozen=True, eq=False)
class Candidates:
    """Groups that can be scored and removed, all groups, and why the others are left alone."""

    groups: list[ChannelGroup]
    everything: list[ChannelGroup]
    excluded: dict[str, str]


def candidates(plan: Plan) -> Candidates:
    """What the plan may touch.

    Raises:
        TPVError: for a pattern to ignore that matches nothing; if no group is left; for a graph that is
            traced wrongly.
    """
    found = [channel_group(group) for group in all_groups(trace(plan.model, plan.example, plan.forward))]
    for glob in plan.ignore:
        if not any(fnmatchcase(group.name, glob) for group in found):
            raise TPVError(
                f"ignore={glob!r} matches no group of channels: there are "
                f"{', '.join(group.name for group in found)}."
            )
    excluded: dict[str, str] = {}
    for group in found:
        if (reason := _unfit(group, plan)) is not None:
            excluded[group.name] = reason
    groups, wrong = verified(
        plan.model, plan.example, [group for group in found if group.name not in excluded], plan.forward
    )
    excluded |= wrong
    if not groups:
        reasons = (
            "; ".join(f"{name}: {why}" for name, why in excluded.items())
            or "it has no hidden convolution or linear layer"
        )
        raise TPVError(f"no channel of the model can be removed ({reasons}).")
    return Candidates(groups, found, excluded)


def _unfit(group: ChannelGroup, plan: Plan) -> str | None:
    if any(fnmatchcase(group.name, glob) for glob in plan.ignore):
        return "ignored"
    try:
        group.chosen(plan.members)
    except TPVError as error:
        return str(error)
    return None
