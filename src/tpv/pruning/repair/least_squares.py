"""Re-fitting a layer's weights and bias to given outputs: ridge regression towards the weights it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpv.model.outputs import mask_of

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_POSITIONS = 128
_HELD_OUT = 4
_IMAGES_AT_ONCE = 32
_ROUNDING, _TINY = 1e-12, 1e-30


def fittable(model: nn.Module) -> dict[str, Layer]:
    """Trainable convolutions and linear layers with a weight of their own and without hooks."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers: dict[str, Layer] = {}
    for name, m in model.named_modules():
        plain = type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if plain and not (m._forward_hooks or m._forward_pre_hooks) and uses[id(m.weight)] == 1:
            layers |= {name: m} if m.weight.requires_grad else {}
    return layers


@dataclass
class RowMoments:
    """Additive float64 sums over rows (positions) of a layer's inputs x (G, D) and targets y (G, O), by
    convolution group G.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor
    rows: int = 0

    @staticmethod
    def zero(layer: Layer) -> RowMoments:
        """No rows."""
        g, w = groups_of(layer), layer.weight
        d, o = w[0].numel(), len(w) // g
        shapes = {"xx": (g, d, d), "xy": (g, d, o), "yy": (g, o), "x": (g, d), "y": (g, o)}
        like = torch.empty(0, dtype=torch.float64, device=w.device)
        return RowMoments(**{name: like.new_zeros(shape) for name, shape in shapes.items()}, rows=0)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (R, G, D) and y (R, G, O)."""
        xg, yg = x.double().transpose(0, 1), y.double().transpose(0, 1)
        self.xx += xg.mT @ xg
        self.xy += xg.mT @ yg
        self.yy += yg.square().sum(1)
        self.x += xg.sum(1)
        self.y += yg.sum(1)
        self.rows += len(x)

    def __add__(self, other: RowMoments) -> RowMoments:
        mine, theirs = vars(self), vars(other)
        return RowMoments(**{key: mine[key] + theirs[key] for key in mine})

    def restricted(self, index: Tensor) -> RowMoments:
        """Of some of the D inputs."""
        xx = self.xx[:, index][:, :, index]
        return replace(self, xx=xx, xy=self.xy[:, index], x=self.x[:, index])

    def uncentered(self) -> RowMoments:
        """As if the means were 0: least squares without a bias."""
        return replace(self, x=torch.zeros_like(self.x), y=torch.zeros_like(self.y))

    def centered(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Covariances xx, xy, the variance of y, and both means."""
        x, y = self.x / self.rows, self.y / self.rows
        xx = self.xx / self.rows - x.unsqueeze(2) * x.unsqueeze(1)
        xy = self.xy / self.rows - x.unsqueeze(2) * y.unsqueeze(1)
        return xx, xy, self.yy / self.rows - y.square(), x, y


@dataclass
class SplitMoments:
    """Moments of a layer's rows, of three in four examples and of the others, which choose the ridge."""

    layer: Layer
    fitted: RowMoments
    held_out: RowMoments
    seen: int = 0

    @staticmethod
    def zero(layer: Layer) -> SplitMoments:
        """No examples."""
        return SplitMoments(layer, RowMoments.zero(layer), RowMoments.zero(layer))

    def update(self, x: Tensor, y: Tensor, examples: int, counted: Tensor | None = None) -> None:
        """Add a batch of so many examples: the layer's inputs x, rows y (R, O) of its targets as
        :func:`output_rows` gives them, and which of the rows count (R,).
        """
        repeats = len(x) // examples if len(x) % examples == 0 else 1
        held_out = (torch.arange(len(x)) // repeats + self.seen) % _HELD_OUT == 0
        self.seen += examples
        m = len(y) // len(x)
        for start in range(0, len(x), _IMAGES_AT_ONCE):
            part = slice(start * m, (start + _IMAGES_AT_ONCE) * m)
            inputs = input_rows(self.layer, x, slice(start, start + _IMAGES_AT_ONCE))
            targets = y[part].unflatten(1, (groups_of(self.layer), -1))
            aside = held_out.repeat_interleave(m)[part].to(inputs.device)
            use = torch.ones_like(aside) if counted is None else counted[part]
            for rows, moments in ((use & ~aside, self.fitted), (use & aside, self.held_out)):
                moments.update(inputs[rows], targets[rows])

    def restricted(self, index: Tensor) -> SplitMoments:
        """Of some of the D inputs."""
        return SplitMoments(self.layer, self.fitted.restricted(index), self.held_out.restricted(index))

    def uncentered(self) -> SplitMoments:
        """As if the means were 0: least squares without a bias."""
        return SplitMoments(self.layer, self.fitted.uncentered(), self.held_out.uncentered())

    @property
    def all(self) -> RowMoments:
        """Of all examples."""
        return self.fitted + self.held_out

    def best_ridge(self, weight: Tensor) -> float:
        """The ridge that predicts held-out rows best from the others; the largest where either has none."""
        if not (self.fitted.rows and self.held_out.rows):
            return RIDGES[-1]
        return min(RIDGES, key=lambda ridge: error(self.held_out, *fit(self.fitted, weight, ridge)))


def groups_of(layer: Layer) -> int:
    """Convolution groups; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def positions(images: int, count: int) -> Tensor:
    """(images, M) positions of each image: all, or always the same random one of each of M equal parts."""
    m = min(count, _POSITIONS)
    shift = torch.rand(images, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(m) + shift) * (count / m)).long().clamp(max=count - 1)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """(N · M, channels) at the sampled positions of a layer's output, or of a tensor of its shape."""
    rows = y.reshape(len(y), -1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).mT
    return _sampled(rows, slice(None))


def input_rows(layer: Layer, x: Tensor, images: slice) -> Tensor:
    """(R, G, D): what the sampled positions are computed from, in the order of the weight's axes."""
    if isinstance(layer, nn.Linear):
        return _sampled(x.reshape(len(x), -1, x.shape[-1]), images).unsqueeze(1)
    patches = _patches(layer, x[images])
    shape = patches.shape[1 : 1 + len(layer.kernel_size)]
    at = positions(len(x), shape.numel())[images].to(x.device)
    image = torch.arange(len(at), device=x.device).unsqueeze(1).expand_as(at).flatten()
    return patches[(image, *_coordinates(at.flatten(), shape))].reshape(at.numel(), layer.groups, -1)


def _coordinates(at: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """torch.unravel_index, which imports sympy."""
    coordinates = []
    for size in reversed(shape):
        coordinates.append(at % size)
        at = at // size
    return coordinates[::-1]


def counted_rows(layer: Layer, batch: Any, x: Tensor) -> Tensor | None:
    """(R,) which of the sampled positions are not padding; None where all count."""
    mask = mask_of(batch, x) if isinstance(layer, nn.Linear) else None
    return None if mask is None else output_rows(layer, mask).flatten() > 0


def _sampled(t: Tensor, images: slice) -> Tensor:
    """(R, C) at the sampled positions of (N, positions, C)."""
    at = positions(len(t), t.shape[1])[images].to(t.device)
    return t[images][torch.arange(len(at), device=t.device).unsqueeze(1), at].flatten(0, 1)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """(N, *positions, C, *kernel), a view of the padded input."""
    padding = layer._reversed_padding_repeated_twice
    x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(sizes):
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, 1 + len(layer.kernel_size))


def fit(moments: RowMoments, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    r"""Weight (G, O, D) and bias (G, O) that minimize :math:`E\|W x + b - y\|^2 + \lambda \|W - W_0\|^2`.

    λ is the ridge times the mean variance of the inputs.
    """
    xx, xy, _, x, y = moments.centered()
    w0 = weight.mT
    residual = xy - xx @ w0
    diagonal = xx.diagonal(dim1=1, dim2=2)
    # the variance of constant inputs may be rounded below 0
    rounding = _ROUNDING * (diagonal + x.square()).mean(1, keepdim=True) + _TINY
    diagonal += ridge * diagonal.mean(1, keepdim=True).clamp(min=0) + rounding
    w = (w0 + torch.cholesky_solve(residual, torch.linalg.cholesky(xx))).mT
    return w, y - (w @ x.unsqueeze(2)).squeeze(2)


def error(moments: RowMoments, weight: Tensor, bias: Tensor) -> float:
    """E‖W x + b − y‖², summed over outputs."""
    xx, xy, yy, x, y = moments.centered()
    quadratic = ((weight @ xx) * weight).sum(2) - 2 * (weight * xy.mT).sum(2) + yy
    shift = (weight @ x.unsqueeze(2)).squeeze(2) + bias - y
    return (quadratic + shift.square()).sum().item()
