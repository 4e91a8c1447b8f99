"""What a criterion may look at, and the gradients that many of them want."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

BATCH = 128
Gradients = dict[nn.Parameter, Tensor]


@dataclass(frozen=True)
class Calibration:
    """Normalized images with their true labels, and the seed of what is random."""

    images: Tensor
    labels: Tensor
    seed: int = 0


class Criterion(Protocol):
    """Scores the root channels of a group: the lowest go first. ``refresh`` follows every change of the
    weights.
    """

    def refresh(self, model: nn.Module) -> None: ...

    def __call__(self, group: tp.dependency.Group) -> Tensor: ...


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """The most likely class of each example (N,)."""
    return torch.cat([model(part).argmax(1) for part in x.split(BATCH)])


def batch_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[int, Gradients]]:
    """For each batch its size and the gradient of the mean of m·f, m = softmax(f) − onehot(y) held constant
    (that of cross-entropy).
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        loss = F.cross_entropy(model(part), labels)
        yield len(part), dict(zip(weights, torch.autograd.grad(loss, weights), strict=True))
