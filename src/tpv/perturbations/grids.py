"""Grids of representable numbers: the step at each weight, and rounding to the nearest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2")
_FORMATS = {  # torch dtype, mantissa bits, smallest normal exponent, whether it needs a scale
    "bf16": (torch.bfloat16, 7, -126, False),
    "fp16": (torch.float16, 10, -14, False),
    "fp8_e4m3": (torch.float8_e4m3fn, 3, -6, True),
    "fp8_e5m2": (torch.float8_e5m2, 2, -14, True),
}


class Grid(ABC):
    """A grid fitted to rows of weights; the weights along the last axis share it."""

    @abstractmethod
    def step(self, w: Tensor) -> Tensor:
        """Distance between neighbouring grid points at w, broadcastable to w."""

    @abstractmethod
    def rounded(self, w: Tensor) -> Tensor:
        """Q(w)."""


@dataclass(frozen=True)
class SymmetricGrid(Grid):
    """Integers low … high times a scale, as ``torch.fake_quantize_per_channel_affine`` with zero point 0."""

    scale: Tensor
    low: int
    high: int

    @classmethod
    def fitted(cls, w: Tensor, bits: int, restricted: bool) -> SymmetricGrid:
        half = 2 ** (bits - 1)
        largest = w.abs().amax(-1, keepdim=True)
        return cls(largest / (half - (1 if restricted else 0.5)), 1 - half if restricted else -half, half - 1)

    def step(self, w: Tensor) -> Tensor:
        return self.scale

    def rounded(self, w: Tensor) -> Tensor:
        scale = _nonzero(self.scale)
        return (w / scale).round().clamp(self.low, self.high) * scale


@dataclass(frozen=True)
class AffineGrid(Grid):
    """Integers 0 … 2ᵇ−1 with a zero point, so that 0 is represented exactly, as PyTorch's observers choose
    them.
    """

    scale: Tensor
    zero_point: Tensor
    high: int

    @classmethod
    def fitted(cls, w: Tensor, bits: int) -> AffineGrid:
        low = w.amin(-1, keepdim=True).clamp(max=0)
        scale = (w.amax(-1, keepdim=True).clamp(min=0) - low) / (2**bits - 1)
        return cls(scale, (-low / _nonzero(scale)).round(), 2**bits - 1)

    def step(self, w: Tensor) -> Tensor:
        return self.scale

    def rounded(self, w: Tensor) -> Tensor:
        scale = _nonzero(self.scale)
        return ((w / scale).round() + self.zero_point).clamp(0, self.high).sub(self.zero_point) * scale


@dataclass(frozen=True)
class FloatGrid(Grid):
    """Binary floating point: the step doubles with every power of two."""

    scale: Tensor
    dtype: str

    @classmethod
    def fitted(cls, w: Tensor, dtype: str) -> FloatGrid:
        torch_dtype, _, _, scaled = _FORMATS[dtype]
        largest = w.abs().amax(-1, keepdim=True)
        return cls(
            _nonzero(largest / torch.finfo(torch_dtype).max) if scaled else torch.ones_like(largest), dtype
        )

    def step(self, w: Tensor) -> Tensor:
        _, mantissa, smallest, _ = _FORMATS[self.dtype]
        fraction, exponent = torch.frexp(w / self.scale)
        floor_log2 = torch.where(fraction == 0, smallest, exponent - 1).clamp(min=smallest)
        return torch.ldexp(self.scale.expand_as(w), floor_log2 - mantissa)

    def rounded(self, w: Tensor) -> Tensor:
        return (w / self.scale).to(_FORMATS[self.dtype][0]).to(w.dtype) * self.scale


def _nonzero(scale: Tensor) -> Tensor:
    """A scale to divide by; rows of zeros have range 0 and stay zero."""
    return torch.where(scale > 0, scale, 1)
