"""A target for ``tpv report`` and ``tpv prune``: ResNet-20 on CIFAR-10.

    TPV_DATA_DIR=... tpv report examples/cifar10_resnet20.py
    TPV_DATA_DIR=... tpv prune examples/cifar10_resnet20.py --target macs=0.5 --allocation curves --compensate

``TPV_DATA_DIR`` is a folder laid out as on the Hugging Face hub. It must hold ``uoft-cs/cifar10`` and
``weights/cifar10_resnet20.safetensors`` (github.com/akamaster/pytorch_resnet_cifar10, BSD-2-Clause).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from datasets import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PaddingShortcut(nn.Module):
    """Option A of He et al.: every ``stride``-th pixel, padded with channels of zeros; no parameters."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (planes - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = (
            nn.Identity() if (inputs, stride) == (planes, 1) else PaddingShortcut(inputs, planes, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for CIFAR (He et al. 2015, section 4.2) of depth 6n + 2."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, planes, stride), *[BasicBlock(planes, planes, 1) for _ in range(blocks - 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def data_root() -> Path:
    """``TPV_DATA_DIR``, or an error that names what to download."""
    root = os.environ.get("TPV_DATA_DIR")
    if not root:
        raise SystemExit(
            "TPV_DATA_DIR is not set: download the data set uoft-cs/cifar10 from the Hugging Face hub and a "
            "ResNet-20 for CIFAR-10 (weights/cifar10_resnet20.safetensors) into a folder and set "
            "TPV_DATA_DIR to it."
        )
    return Path(root)


def pixels(table: Dataset) -> Tensor:
    """The raw images of a data set, (N, 3, 32, 32) in bytes."""
    import numpy as np

    return (
        torch.stack([torch.from_numpy(np.array(image)) for image in table["img"]])
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def normalized(x: Tensor) -> Tensor:
    """Images normalized as the networks expect them."""
    return (x.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def images(split: str) -> Tensor:
    """Normalized images (N, 3, 32, 32) of the split "train" or "test"."""
    return labelled(split)[0]


def labelled(split: str) -> tuple[Tensor, Tensor]:
    """Normalized images (N, 3, 32, 32) and their classes (N,)."""
    from datasets import load_dataset

    table = load_dataset(str(data_root() / "uoft-cs" / "cifar10"), split=split)
    return normalized(pixels(table)), torch.tensor(table["label"])


def model(depth: int = 20) -> nn.Module:
    """The trained network in evaluation mode."""
    from safetensors.torch import load_file

    network = CifarResNet(depth)
    network.load_state_dict(load_file(data_root() / "weights" / f"cifar10_resnet{depth}.safetensors"))
    return network.eval()


def train_data() -> Tensor:
    """4,000 training images."""
    return images("train")


def test_data() -> list[tuple[Tensor, Tensor]]:
    """1,000 test images in batches with their labels, which only the accuracy uses."""
    return list(zip(*(part.split(250) for part in labelled("test")), strict=True))
