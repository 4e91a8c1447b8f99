"""What deleting a channel does to the outputs, by deleting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch_pruning as tp
from torch import Tensor, nn
from training import cache_folder

from experiments.pruning.members import groups, members
from experiments.pruning.networks import Network


@torch.no_grad()
def true_damage(model: nn.Module, x: Tensor, group: tp.dependency.Group) -> Tensor:
    """E‖f − f without the channel‖², squares summed over outputs and averaged over examples, for each root
    channel.

    The layers that take the channel in get zero weights for it, which deletes it wherever no LayerNorm or
    GroupNorm looks at all channels.
    """
    clean = model(x)
    damages = []
    for channel in range(len(group[0].idxs)):
        with _deaf(group, channel):
            damages.append((model(x) - clean).double().square().sum(1).mean())
    return torch.stack(damages)


@contextmanager
def _deaf(group: tp.dependency.Group, channel: int) -> Iterator[None]:
    """Nobody listens to a channel."""
    consumers = [member for member in members(group, frozen=True) if member.side == "in"]
    weights = [member.layer.weight.detach().clone() for member in consumers]
    try:
        for member in consumers:
            if getattr(member.layer, "groups", 1) != 1:
                raise NotImplementedError("a grouped convolution takes the channel in")
            dim = 0 if getattr(member.layer, "transposed", False) else 1
            member.layer.weight.index_fill_(dim, member.indices[member.roots == channel], 0)
        yield
    finally:
        for member, weight in zip(consumers, weights, strict=True):
            member.layer.weight.copy_(weight)


def root_names(model: nn.Module, groups: Iterable[tp.dependency.Group]) -> list[str]:
    """Groups by the name of the layer they start from."""
    names = {module: name for name, module in model.named_modules()}
    return [names[group[0].dep.layer] for group in groups]


def damages(network: Network, n: int = 256) -> dict[str, Tensor]:
    """By the name of a group's root, the damage of each channel on the first ``n`` test images; measured
    once, then read from the cache.
    """
    from safetensors.torch import load_file, save_file

    file = cache_folder("pruning_damage") / f"{network.name}-test-{n}.safetensors"
    if not file.is_file():
        model, x = network.model(), network.images("test", slice(n))[0]
        all_groups = groups(model, x)
        save_file(
            {
                name: true_damage(model, x, g)
                for name, g in zip(root_names(model, all_groups), all_groups, strict=True)
            },
            file,
        )
    return load_file(file)
