"""Criteria from Σ w·∂ over the weights of a channel, layer by layer: Taylor with BatchNorm, JC and JBR as
published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch_pruning as tp
from torch import Tensor, nn

from experiments.pruning.calibration import batch_gradients
from experiments.pruning.members import LAYERS, Side, by_channel, members

Reduce = Callable[[Tensor, Tensor], Tensor]


def absolute_mean(sums: Tensor, share: Tensor) -> Tensor:
    """Taylor: |Σ w·∂| of the mean loss."""
    return (share @ sums).abs()


def mean_square(sums: Tensor, share: Tensor) -> Tensor:
    """JC and JBR: (Σ w·∂)² of each batch's mean, averaged over batches."""
    return sums.square().mean(0)


@dataclass
class FirstOrder:
    """Summed over the layers of a group, without a normaliser.

    Args:
        images: in batches of 128.
        labels: y*, of the data or predicted.
        reduce: sums (batches, channels) and the batches' shares of the examples → scores of one layer.
    """

    images: Tensor
    labels: Tensor
    reduce: Reduce
    _sums: dict[tuple[nn.Module, Side], Tensor] = field(init=False, default_factory=dict)
    _share: Tensor = field(init=False)

    def refresh(self, model: nn.Module) -> None:
        sums: dict[tuple[nn.Module, Side], list[Tensor]] = {}
        sizes = []
        for size, gradients in batch_gradients(model, self.images, self.labels):
            sizes.append(size / len(self.images))
            products = {p: p.detach() * g for p, g in gradients.items()}
            for layer in model.modules():
                for side in _sides(layer, products):
                    sums.setdefault((layer, side), []).append(_channel_sums(layer, side, products))
        self._sums = {key: torch.stack(rows) for key, rows in sums.items()}
        self._share = self.images.new_tensor(sizes)

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        size = len(group[0].idxs)
        return sum(
            self.reduce(m.summed(self._sums[m.layer, m.side], size), self._share) for m in members(group)
        )


def _sides(layer: nn.Module, products: dict[nn.Parameter, Tensor]) -> tuple[Side, ...]:
    if not isinstance(layer, LAYERS) or layer.weight not in products:
        return ()
    return ("out",) if layer.weight.ndim == 1 else ("out", "in")


def _channel_sums(layer: nn.Module, side: Side, products: dict[nn.Parameter, Tensor]) -> Tensor:
    """Σ w·∂ by channel; the bias belongs to the output."""
    total = by_channel(layer, products[layer.weight], side).sum(1)
    return total + products[layer.bias] if side == "out" and layer.bias is not None else total
