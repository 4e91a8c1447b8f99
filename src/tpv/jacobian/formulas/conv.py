"""nn.Conv1d/2d/3d: a linear layer over the patches of its input."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpv.jacobian.formulas.base import LayerCall, Variance, gram_is_cheaper, gram_square

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvCall(LayerCall):
    """Gram matrices where the positions are few, else one grouped weight gradient with the examples as
    groups.
    """

    def __init__(self, module: Conv, x: Tensor, n: int, passes: int) -> None:
        self.module, self.n, self.passes = module, n, passes
        self.x, self.padding = _symmetric_padding(module, x)
        positions = math.prod(self._out_size())
        self.scratch = positions**2 if self._use_gram(positions) else module.weight.numel()

    @cached_property
    def padded(self) -> Tensor:
        """(N·groups, C/groups, ...): the input with its zero padding."""
        x = F.pad(self.x, [p for p in reversed(self.padding) for _ in range(2)])
        return x.reshape(len(x) * self.module.groups, -1, *x.shape[2:])

    @cached_property
    def patches(self) -> Tensor:
        """(N·groups, C/groups·k, P): every input window as a column."""
        m, x = self.module, self.padded
        windows = [step * d for step, d in zip(x.stride()[2:], m.dilation, strict=True)]
        steps = [step * s for step, s in zip(x.stride()[2:], m.stride, strict=True)]
        out = self._out_size()
        view = x.as_strided(
            [*x.shape[:2], *m.kernel_size, *out], [*x.stride()[:2], *windows, *steps], x.storage_offset()
        )
        return view.reshape(len(x), -1, math.prod(out))

    @cached_property
    def gram(self) -> Tensor:
        """(N·groups, P, P) inner products of windows, or where there are fewer pixel pairs, sums of shifted
        pixel products.
        """
        pixels, positions = math.prod(self.padded.shape[2:]), math.prod(self._out_size())
        if pixels**2 > positions**2 * math.prod(self.module.kernel_size):
            return torch.bmm(self.patches.transpose(1, 2), self.patches)
        flat = self.padded.flatten(2)
        grams = torch.bmm(flat.transpose(1, 2), flat).reshape(
            len(flat), *self.padded.shape[2:], *self.padded.shape[2:]
        )
        shifted = [grams[(slice(None), *window, *window)] for window in self._windows()]
        return functools.reduce(torch.add, shifted).reshape(len(flat), positions, positions)

    def _out_size(self) -> list[int]:
        m = self.module
        reach = [d * (k - 1) + 1 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        sizes = [size + 2 * p for size, p in zip(self.x.shape[2:], self.padding, strict=True)]
        return [(size - r) // s + 1 for size, r, s in zip(sizes, reach, m.stride, strict=True)]

    def _windows(self) -> Iterator[tuple[slice, ...]]:
        """The pixels that each kernel offset sees."""
        m, out = self.module, self._out_size()
        for offset in itertools.product(*map(range, m.kernel_size)):
            starts = [o * d for o, d in zip(offset, m.dilation, strict=True)]
            yield tuple(
                slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, out, m.stride, strict=True)
            )

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        out = {"weight": self._weight_gradient(g)} if "weight" in names else {}
        return out | ({"bias": self._bias_gradient(g)} if "bias" in names else {})

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        out = {}
        if "weight" in variance:
            scale = variance["weight"].rows
            if scale is not None and len(g) == self.n and self._use_gram(math.prod(g.shape[2:])):
                scaled = g.flatten(2) * scale.reshape(-1, 1) if isinstance(scale, Tensor) else g.flatten(2)
                left = scaled.reshape(self.n * self.module.groups, -1, scaled.shape[2])
                out["weight"] = gram_square(left.transpose(1, 2), self.gram).reshape(self.n, -1).sum(1)
            else:
                out["weight"] = variance["weight"].square(self._weight_gradient(g))
        if "bias" in variance:
            out["bias"] = variance["bias"].square(self._bias_gradient(g))
        return out

    def _use_gram(self, positions: int) -> bool:
        window = math.prod(self.module.weight.shape[1:])
        return gram_is_cheaper(positions, window, self.module.out_channels // self.module.groups, self.passes)

    def _bias_gradient(self, g: Tensor) -> Tensor:
        return g.flatten(2).sum(2).reshape(self.n, -1, g.shape[1]).sum(1)

    def _weight_gradient(self, g: Tensor) -> Tensor:
        shape = self.module.weight.shape
        rows = self._grouped(g) if _grouped_is_fast(self.module, g) else self._unfolded(g)
        return rows.reshape(self.n, -1, *shape).sum(1) if len(g) != self.n else rows.reshape(self.n, *shape)

    def _unfolded(self, g: Tensor) -> Tensor:
        left = g.reshape(len(self.patches), -1, self.patches.shape[2])
        return torch.bmm(self.patches, left.transpose(1, 2)).transpose(1, 2)

    def _grouped(self, g: Tensor) -> Tensor:
        m, (n, c, *size) = self.module, self.x.shape
        weight = g.new_empty(1).expand(n * m.out_channels, *m.weight.shape[1:])
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g.reshape(1, -1, *g.shape[2:]), self.x.reshape(1, n * c, *size), weight, None,
            m.stride, self.padding, m.dilation, False, [0] * len(size), n * m.groups, (False, True, False),
        )[1]  # fmt: skip
        return gradient


def _grouped_is_fast(module: Conv, g: Tensor) -> bool:
    """oneDNN has kernels for grouped float32 weight gradients, good for whole blocks of channels and many
    positions.
    """
    if g.device.type != "cpu" or g.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    channels = module.in_channels // module.groups
    return (
        math.prod(module.kernel_size) > 1 and (channels == 1 or channels >= 8) and math.prod(g.shape[2:]) > 32
    )


def _symmetric_padding(module: Conv, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input and the zero padding still to apply on both sides; any other padding is applied here."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, list(module.padding)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), [0] * (x.ndim - 2)
