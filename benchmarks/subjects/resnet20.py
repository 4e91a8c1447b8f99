"""ResNet-20 on CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.subjects.base import Spec
from benchmarks.subjects.images import available, example, images, words


@dataclass(frozen=True)
class ResNet20(Spec):
    """Trained if it has the ten classes and the weights are available, otherwise random."""

    classes: int = 10
    name = "resnet20"

    @property
    def trained(self) -> bool:
        return available() and self.classes == 10

    @property
    def description(self) -> str:
        weights = "trained on CIFAR-10" if self.trained else "random weights"
        return f"ResNet-20, {weights}, {self.classes} classes; {words()}"

    def network(self) -> nn.Module:
        if self.trained:
            return example().model()
        torch.manual_seed(0)
        return example().CifarResNet(20, self.classes).eval()

    def inputs(self, n: int) -> Tensor:
        return images(n)

    def small(self) -> ResNet20:
        return self
