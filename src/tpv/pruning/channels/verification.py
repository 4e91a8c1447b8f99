"""Does removing a channel compute what it should? Proof for each group, because a traced graph can be
wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.jacobian.formulas.base import tolerance
from tpv.model.batches import call_model
from tpv.model.linearization import Forward
from tpv.model.outputs import outputs_tensor
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import remove

_MIXING = (nn.LayerNorm, nn.GroupNorm)


def verified(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups whose channels can be removed, and why the others cannot.

    A network without a channel must compute what it does with zeros where the channel was read. One channel
    of every group is removed at once; where that does not hold, group by group. Behind norms over channels,
    whose statistics change with a channel, it is only asked that the network runs and gives outputs of the
    same shape.

    Raises:
        TPVError: for a group whose removal runs but computes something else, as Torch-Pruning's graph of
            padding shortcuts does.

    Cost: four forward passes of the example where all is well, else two for each group.
    """
    excluded = {g.name: "has a single channel" for g in groups if g.width == 1}
    excluded |= {
        g.name: f"the weights of {tied[0]} are used by other layers too"
        for g in groups
        if (tied := _tied(model, g))
    }
    usable = [g for g in groups if g.name not in excluded]
    found = problems(model, example, usable, forward)
    if wrong := [name for name, problem in found.items() if problem == WRONG]:
        raise TPVError(wrongly_traced(wrong[0], f"leave the group out with ignore={[wrong[0]]!r}"))
    return [g for g in usable if g.name not in found], excluded | found


WRONG = "computes something else"


def wrongly_traced(name: str, otherwise: str) -> str:
    """The sentence for a group that is ``WRONG``."""
    return (
        f"the traced graph is wrong at {name}: without one of its channels the network computes something "
        "else than with "
        "zeros in its place. For shortcuts that pad with zero channels call "
        "tpv.pruning.replace_padding_shortcuts(model, example) "
        f"first (they must be modules of their own); or {otherwise}."
    )


def problems(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None = None
) -> dict[str, str]:
    """Group → what happens when a channel goes, for groups where something is amiss."""
    mixed = [g for g in groups if _is_mixed(model, g)]
    if not any(
        _agrees(model, example, some, forward) for some in ([g for g in groups if g not in mixed], mixed)
    ):
        return {}
    return {
        group.name: problem
        for group in groups
        if (problem := _agrees(model, example, [group], forward)) is not None
    }


def _agrees(
    model: nn.Module, example: Any, groups: Sequence[ChannelGroup], forward: Forward | None
) -> str | None:
    """None, or what is wrong when the last channel of each group goes."""
    if not groups:
        return None
    run = forward or call_model
    removed = {group.name: [group.width - 1] for group in groups}
    try:
        with torch.no_grad():
            before = outputs_tensor(run(model, example))
            after = outputs_tensor(run(remove(model, example, groups, removed, forward).model, example))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the model does not run without one of its channels ({reason[:120]})"
    if after.shape != before.shape:
        return "its channels are the model's outputs"
    if any(_is_mixed(model, group) for group in groups):
        return None
    with torch.no_grad():
        expected = outputs_tensor(run(silenced(model, groups, removed), example))
    scale = expected.abs().max().clamp(min=1e-30)
    return None if (after - expected).abs().max() <= 10 * tolerance(after.dtype) * scale else WRONG


def _is_mixed(model: nn.Module, group: ChannelGroup) -> bool:
    modules = dict(model.named_modules())
    return any(isinstance(modules.get(m.module), _MIXING) for m in group.members)


def _tied(model: nn.Module, group: ChannelGroup) -> list[str]:
    """Members whose parameters have two names; Torch-Pruning would give each a copy."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name.rpartition(".")[0])
    shared = {module for modules in names.values() if len(modules) > 1 for module in modules}
    return [m.module for m in group.members if m.module in shared]


def silenced(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A copy of the model in which nobody reads the removed channels."""
    quiet = copy.deepcopy(model)
    for name, mask in masks(model, groups, removed).items():
        quiet.get_parameter(name).data.mul_(mask)
    return quiet


def masks(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Masks of the weights that read channels, 0 for the removed ones."""
    found: dict[str, Tensor] = {}
    for group in groups:
        gone = torch.tensor(list(removed.get(group.name, ())), dtype=torch.long)
        for member in group.chosen("consumers") if len(gone) else ():
            name, layer = f"{member.module}.weight", model.get_submodule(member.module)
            mask = mask_of_inputs(layer, member.index[torch.isin(member.channel, gone)]).to(
                next(layer.parameters()).device
            )
            found[name] = found[name] & mask if name in found else mask
    return found


def mask_of_inputs(layer: nn.Module, gone: Tensor) -> Tensor:
    """A mask for a layer's weight, 0 where it reads the inputs ``gone``; a convolution in groups reads each
    in one group.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups = getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):
        mask = torch.ones(len(weight), *[1] * (weight.ndim - 1), dtype=torch.bool)
        mask[gone] = False
        return mask
    mask = torch.ones(groups, 1, weight.shape[1], dtype=torch.bool)
    mask.movedim(1, -1).reshape(-1)[gone] = False
    return mask.expand(groups, len(weight) // groups, weight.shape[1]).reshape(
        len(weight), weight.shape[1], *[1] * (weight.ndim - 2)
    )
