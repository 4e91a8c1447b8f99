"""The networks that are pruned, with the images that criteria see and those that measure damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cifar10_resnet20 as target
import torch
from cifar10_resnet20 import normalized
from torch import Tensor, nn

from experiments.pruning.images import table
from experiments.pruning.vgg import vgg
from tpv.pruning import replace_padding_shortcuts

__all__ = ["NETWORKS", "Network", "resnet", "vgg"]


def resnet(depth: int = 20) -> nn.Module:
    """The trained CIFAR ResNet in evaluation mode, its two option-A shortcuts written as fixed
    convolutions.
    """
    network = target.model(depth)
    replace_padding_shortcuts(network, torch.zeros(1, 3, 32, 32))
    return network


@dataclass(frozen=True)
class Network:
    """A trained network by name. Its ``linear`` is the classifier, whose outputs stay.

    Args:
        model: () → a fresh copy in evaluation mode.
        folder: the data set it was trained on, in ``TPV_DATA_DIR``.
    """

    name: str
    model: Callable[[], nn.Module]
    folder: str

    def images(self, split: str, indices: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Normalized images (N, 3, 32, 32) and labels (N,) of the split "train" or "test"."""
        x, y = table(self.folder, split) if self.folder else _random_table()
        return normalized(x[indices]), y[indices]

    def random_images(self, split: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """``n`` different ones."""
        size = len(self.images(split)[0])
        return self.images(split, torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n])


def _random_table() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (64, 3, 16, 16), generator=generator, dtype=torch.uint8), torch.randint(
        10, (64,), generator=generator
    )


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet20", lambda: resnet(20), "uoft-cs/cifar10"),
        Network("resnet56", lambda: resnet(56), "uoft-cs/cifar10"),
        Network("vgg", vgg, "cifar10-jpeg"),
    )
}


def smoke() -> Network:
    """A random network on random images."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        network = target.CifarResNet(8).eval()
        replace_padding_shortcuts(network, torch.zeros(1, 3, 32, 32))
        return network

    return Network("smoke", model, "")
