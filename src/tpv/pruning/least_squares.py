"""Re-fitting a layer's weights and bias to given outputs: ridge regression towards the weights it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_MOST_ROWS = 2**15


@dataclass
class Moments:
    """Additive float64 sums over rows (positions) of a layer's inputs x (G, D) and targets y (G, O), by convolution group G."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor
    rows: int = 0

    @staticmethod
    def zero(layer: Layer) -> Moments:
        """Nothing yet."""
        g = groups_of(layer)
        w = layer.weight
        d, o = w[0].numel(), len(w) // g

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=w.device)

        return Moments(zeros(g, d, d), zeros(g, d, o), zeros(g, o), zeros(g, d), zeros(g, o))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (R, G, D) and y (R, G, O)."""
        xg, yg = x.transpose(0, 1), y.transpose(0, 1)
        self.xx += (xg.transpose(1, 2) @ xg).double()
        self.xy += (xg.transpose(1, 2) @ yg).double()
        self.yy += y.square().sum(0).double()
        self.x += x.sum(0).double()
        self.y += y.sum(0).double()
        self.rows += len(x)

    def __add__(self, other: Moments) -> Moments:
        mine, theirs = vars(self), vars(other)
        return Moments(**{key: mine[key] + theirs[key] for key in mine})

    def restricted(self, index: Tensor) -> Moments:
        """Of some of the D inputs."""
        return Moments(self.xx[:, index][:, :, index], self.xy[:, index], self.yy, self.x[:, index], self.y, self.rows)

    def centered(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Covariances xx, xy, the variance of y, and both means."""
        x, y = self.x / self.rows, self.y / self.rows
        xx = self.xx / self.rows - x.unsqueeze(2) * x.unsqueeze(1)
        xy = self.xy / self.rows - x.unsqueeze(2) * y.unsqueeze(1)
        return xx, xy, self.yy / self.rows - y.square(), x, y


def groups_of(layer: Layer) -> int:
    """Convolution groups; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def rows(layer: Layer, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (R, G, D) and targets (R, G, O) of every position, or of an even selection where there are very many."""
    g = groups_of(layer)
    if isinstance(layer, nn.Linear):
        a, b = x.reshape(-1, 1, x.shape[-1]), y.reshape(-1, 1, y.shape[-1])
    else:
        patches = _patches(layer, x)
        a = patches.reshape(len(x), g, -1, patches.shape[-1]).permute(0, 3, 1, 2).flatten(0, 1)
        b = y.flatten(2).reshape(len(y), g, -1, patches.shape[-1]).permute(0, 3, 1, 2).flatten(0, 1)
    step = -(-len(a) // _MOST_ROWS) // 2 * 2 + 1 if len(a) > _MOST_ROWS else 1  # odd, so that all columns of an image take part
    return a[::step], b[::step]


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """(N, C · kernel, positions), in the order of the weight's axes."""
    padding = layer._reversed_padding_repeated_twice
    x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    for axis, (kernel, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    k = len(layer.kernel_size)
    return x.permute(0, 1, *range(2 + k, 2 + 2 * k), *range(2, 2 + k)).flatten(2 + k).flatten(1, 1 + k)


def fit(moments: Moments, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Weight (G, O, D) and bias (G, O) that minimise :math:`E\|W x + b - y\|^2 + \lambda \|W - W_0\|^2`.

    λ is the ridge times the mean variance of the inputs.
    """
    xx, xy, _, x, y = moments.centered()
    scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    damped = xx + (ridge * scale).view(-1, 1, 1) * torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
    w0 = weight.transpose(1, 2)
    change = torch.linalg.solve(damped, xy - xx @ w0)
    w = (w0 + change).transpose(1, 2)
    return w, y - (w @ x.unsqueeze(2)).squeeze(2)


def error(moments: Moments, weight: Tensor, bias: Tensor) -> float:
    """E‖W x + b − y‖², summed over outputs."""
    xx, xy, yy, x, y = moments.centered()
    quadratic = ((weight @ xx) * weight).sum(2) - 2 * (weight * xy.transpose(1, 2)).sum(2) + yy
    shift = (weight @ x.unsqueeze(2)).squeeze(2) + bias - y
    return (quadratic + shift.square()).sum().item()


def best_fit(train: Moments, held_out: Moments, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weight and bias from all rows, and the ridge that predicts held-out rows best when fitted on the others."""
    errors = {ridge: error(held_out, *fit(train, weight, ridge)) for ridge in RIDGES}
    ridge = min(errors, key=lambda r: errors[r])
    return *fit(train + held_out, weight, ridge), ridge
