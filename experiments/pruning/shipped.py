"""Torch-Pruning's own criteria, fed as it asks for: with averages in ``.grad``, which they leave there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from experiments.pruning.calibration import BATCH, Calibration, batch_gradients
from experiments.pruning.members import without_frozen
from tpv.jacobian import Sweep
from tpv.model.linearization import Linearization

Fill = Callable[[nn.Module, Calibration], None]


@dataclass
class Shipped:
    """A criterion of Torch-Pruning on the weights that train, and what gives the model its ``.grad``."""

    importance: tp.importance.Importance
    fill: Fill | None = None
    data: Calibration | None = None

    def refresh(self, model: nn.Module) -> None:
        if self.fill is not None:
            self.fill(model, self.data)

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        return self.importance(without_frozen(group))


@dataclass
class Random:
    """Uniform scores."""

    seed: int

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def refresh(self, model: nn.Module) -> None:
        pass

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        return torch.rand(len(group[0].idxs), generator=self._generator)


def mean_gradient(model: nn.Module, data: Calibration) -> None:
    """``.grad`` of the mean loss."""
    _clear(model)
    for size, gradients in batch_gradients(model, data.images, data.labels):
        for p, g in gradients.items():
            p.grad = g * (size / len(data.images)) + (0 if p.grad is None else p.grad)


def last_square(model: nn.Module, data: Calibration) -> None:
    """``.grad`` squared of the last example: all that Torch-Pruning's ``accumulate_grad`` keeps of any number
    of them.
    """
    _clear(model)
    F.cross_entropy(model(data.images[-2:]), data.labels[-2:], reduction="none")[-1].backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.square_()


def mean_square(model: nn.Module, data: Calibration) -> None:
    """``.grad`` as the mean over examples of each one's squared gradient."""
    _clear(model)
    lin = Linearization(model)
    sweep = Sweep(lin, {name: p.new_ones(()) for name, p in model.named_parameters() if p.requires_grad})
    weights = dict(model.named_parameters())
    for x, y in zip(data.images.split(BATCH // 2), data.labels.split(BATCH // 2), strict=True):
        with sweep.jacobian(x) as (outputs, gradients):
            m = outputs.softmax(1) - F.one_hot(y, outputs.shape[1])
            for name, g in gradients(m, sweep.names).items():
                p, mean = weights[name], g.square().sum(0) / len(data.images)
                p.grad = mean if p.grad is None else p.grad + mean


def _clear(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None
