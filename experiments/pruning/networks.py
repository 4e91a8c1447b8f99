"""The networks that are pruned, with the images that criteria see and those that measure damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cifar10_resnet20 as target
import torch
import torch.nn.functional as F
from cifar10_resnet20 import BasicBlock, normalised
from torch import Tensor, nn

from experiments.pruning.images import table
from experiments.pruning.vgg import vgg

__all__ = ["NETWORKS", "Network", "resnet", "vgg"]


class _ConvolvedBlock(nn.Module):
    """A block whose shortcut is a module, as Torch-Pruning traces padding wrongly."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = nn.Identity() if block.stride == 1 else _convolution(block)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _convolution(block: BasicBlock) -> nn.Conv2d:
    """The same as every second pixel between zero channels: 1×1 with weights 0 and 1 that nothing trains."""
    inputs = block.conv1.in_channels
    shortcut = nn.Conv2d(inputs, block.conv1.out_channels, 1, block.stride, bias=False)
    eye = F.pad(torch.eye(inputs), (0, 0, block.padding, block.padding))
    shortcut.weight = nn.Parameter(eye[:, :, None, None], requires_grad=False)
    return shortcut


def resnet(depth: int = 20) -> nn.Module:
    """The trained CIFAR ResNet in evaluation mode, its two option-A shortcuts written as fixed convolutions."""
    network = target.model(depth)
    for stage in (network.layer1, network.layer2, network.layer3):
        for i, block in enumerate(stage):
            stage[i] = _ConvolvedBlock(block).eval()
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

    def images(self, split: str, chosen: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, 32, 32) and labels (N,) of the split "train" or "test"."""
        x, y = table(self.folder, split)
        return normalised(x[chosen]), y[chosen]

    def random_images(self, split: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """``n`` different ones."""
        size = len(table(self.folder, split)[0])
        return self.images(split, torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n])


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet20", lambda: resnet(20), "uoft-cs/cifar10"),
        Network("resnet56", lambda: resnet(56), "uoft-cs/cifar10"),
        Network("vgg", vgg, "cifar10-jpeg"),
    )
}
