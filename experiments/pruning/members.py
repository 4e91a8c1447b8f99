"""What a group of Torch-Pruning consists of: sides of layers whose channels are deleted together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

Side = Literal["out", "in"]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, *NORMS)


@dataclass(frozen=True)
class Member:
    """One side of a layer: channel ``indices[i]`` of it goes when channel ``roots[i]`` of the group goes."""

    layer: nn.Module
    side: Side
    indices: Tensor
    roots: Tensor

    def summed(self, values: Tensor, size: int) -> Tensor:
        """(..., channels of this side) → (..., size), summed over the indices of a root channel."""
        out = values.new_zeros(*values.shape[:-1], size)
        return out.index_add_(-1, self.roots, values[..., self.indices])

    def rows(self) -> tuple[Tensor, Tensor]:
        """The root channels this side has, and the weights of each as a row."""
        every = by_channel(self.layer, self.layer.weight.detach(), self.side)
        roots, order = self.roots.unique(), self.roots.argsort(stable=True)
        return roots, every[self.indices[order]].reshape(len(roots), -1)


def by_channel(layer: nn.Module, tensor: Tensor, side: Side) -> Tensor:
    """A weight or bias as (channels of that side, the entries that belong to each)."""
    if tensor.ndim == 1:
        return tensor[:, None]
    if (side == "in") == getattr(layer, "transposed", False):
        return tensor.flatten(1)
    return tensor.unflatten(0, (getattr(layer, "groups", 1), -1)).transpose(1, 2).flatten(0, 1).flatten(1)


def members(group: tp.dependency.Group, frozen: bool = False) -> Iterator[Member]:
    """The layers of a group that hold weights; those that nothing trains only if ``frozen``."""
    for item in group.items:
        layer, handler = item.dep.layer, item.dep.handler
        if not any(frozen or p.requires_grad for p in _parameters(layer)):
            continue
        if not isinstance(layer, LAYERS):
            raise TypeError(f"no rule says which weights of {item.dep.target.name} belong to a channel")
        side: Side = "out" if group._DG.is_out_channel_pruning_fn(handler) else "in"
        yield Member(layer, side, torch.tensor(item.idxs), torch.tensor(item.root_idxs))


def without_frozen(group: tp.dependency.Group) -> tp.dependency.Group:
    """The same group for criteria that would count, or stumble over, weights that nothing trains."""
    trained = tp.dependency.Group()
    trained._DG = group._DG
    trained._group = [
        item for item in group.items if all(p.requires_grad for p in _parameters(item.dep.layer))
    ]
    return trained


def groups(model: nn.Module, x: Tensor) -> list[tp.dependency.Group]:
    """Every group of a network but the one of its classifier ``linear``."""
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    return list(graph.get_all_groups(ignored_layers=[model.linear]))


def _parameters(layer: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return list(layer.parameters()) if isinstance(layer, nn.Module) else [layer]
