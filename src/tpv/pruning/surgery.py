"""Removing channels for good."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv._errors import TPVError
from tpv.linearization import Forward
from tpv.pruning.groups import ChannelGroup
from tpv.pruning.tracing import trace

Removed = Mapping[str, Sequence[int]]
"""Group → removed channels (sets of tied ones), numbered as in the unpruned model."""


@dataclass(frozen=True, eq=False)
class Surgery:
    """A pruned copy of a model.

    Attributes:
        model: the copy.
        history: Torch-Pruning's pruning history, ``[[module, whether its outputs, indices], ...]``.
    """

    model: nn.Module
    history: list[list[Any]]


def remove(model: nn.Module, example: Any, groups: Sequence[ChannelGroup], removed: Removed, forward: Forward | None = None) -> Surgery:
    """A copy of the model without these channels.

    Raises:
        TPVError: if a group would be left empty.
    """
    pruned = copy.deepcopy(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    graph = trace(pruned, example, forward)
    for group in groups:
        channels = [c for unit in sorted(removed.get(group.name, ())) for c in group.channels(unit)]
        if len(channels) >= group.width * group.tied:
            raise TPVError(f"{group.name} would lose all its channels: at least one must stay.")
        if channels:
            root = pruned.get_submodule(group.name)
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()
    for name, p in pruned.named_parameters():
        p.requires_grad_(name not in frozen)
    return Surgery(pruned, [list(entry) for entry in graph.pruning_history()])


def kept_outputs(groups: Sequence[ChannelGroup], removed: Removed, model: nn.Module) -> dict[str, Tensor]:
    """Module → the output channels of the unpruned model that it still has, for modules that lost some."""
    found: dict[str, Tensor] = {}
    for group in groups:
        gone = torch.tensor(sorted(removed.get(group.name, ())), dtype=torch.long)
        for member in group.members:
            if member.role != "producer" or not len(gone) or member.module not in dict(model.named_modules()):
                continue
            width = _width(model.get_submodule(member.module))
            keep = found.get(member.module, torch.ones(width, dtype=torch.bool))
            keep[member.index[torch.isin(member.channel, gone)]] = False
            found[member.module] = keep
    return {name: keep.nonzero().flatten() for name, keep in found.items()}


def _width(module: nn.Module) -> int:
    for attribute in ("out_channels", "out_features", "num_features", "num_channels", "embedding_dim"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[-1]
