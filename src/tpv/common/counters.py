"""Random numbers that are functions of (seed, stream, row, column), drawn in no sequence.

The number at a place is a hash of the place: SplitMix64's finalizer, twice, in integer tensor operations. So
it is the same on every device and for every batch size, chunk and order of rows, and it is made where it is
used.

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (2014); Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

_BITS = 64
_ALL = (1 << _BITS) - 1
_ROW, _COLUMN, _STREAM = 0xD1342543DE82EF95, 0x9E3779B97F4A7C15, 0xF1357AEA2E62A9C5
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_MANY_COLUMNS = 4096


def seed_of(generator: int | torch.Generator) -> int:
    """An int is its own seed; a generator gives one by one draw."""
    if isinstance(generator, int):
        return generator
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def words(seed: int, rows: Tensor, columns: int, stream: int = 0) -> Tensor:
    """(n, columns) random int64 of rows (n,), on their device."""
    keys = _hashed(rows * _signed(_ROW) + _signed(_start(seed, stream)))
    steps = torch.arange(1, columns + 1, device=rows.device) * _signed(_COLUMN)
    return _hashed(keys.unsqueeze(1) + steps)


def signs(seed: int, rows: Tensor, columns: int, stream: int = 0) -> Tensor:
    """(n, columns) random ±1 in int8 of rows (n,), on their device: one bit of a word for each."""
    packed = words(seed, rows, -(-columns // _BITS), stream)
    unpacked = _signs_of_bytes(rows.device).index_select(0, packed.view(torch.uint8).flatten().int())
    return unpacked.view(torch.int8).reshape(len(rows), packed.shape[1] * _BITS)[:, :columns]


def normals(seed: int, rows: Tensor, columns: int, stream: int = 0) -> Tensor:
    """(n, columns) standard normal numbers in float64 of rows (n,), on their device, by Box and Muller's
    transform.

    Devices differ by the rounding of logarithm and cosine.
    """
    uniform = (words(seed, rows, columns + columns % 2, stream) >> 11 & (1 << 53) - 1).double().add_(0.5)
    radius, angle = uniform.mul_(2.0**-53).chunk(2, dim=1)
    radius, angle = radius.log().mul_(-2).sqrt_(), angle * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :columns]


def independent_signs(seed: int, rows: Tensor, count: int, columns: int) -> Iterator[Tensor]:
    """``count`` vectors of random signs of each row, (n, columns) at a time."""
    return (signs(seed, rows, columns, stream) for stream in range(count))


def cotangents(seed: int, rows: Tensor, count: int, columns: int) -> Iterator[Tensor]:
    r"""``count`` random vectors v of each row, (n, K) at a time with K columns, all with E[vvᵀ] = I.

    One is a vector of random signs, as are those of many columns (K > 4096, count ≤ K/64). Else they are
    orthogonal within a row, so that K of them satisfy :math:`\sum_r v_r v_r^\top = K I` exactly: randomly
    chosen and randomly signed rows of a Hadamard matrix where K is a power of two, else of the Hartley matrix
    cos(2πjk/K) + sin(2πjk/K), which is orthogonal for every K.
    """
    if count == 1 or (columns > _MANY_COLUMNS and count <= columns // 64):
        yield from independent_signs(seed, rows, count, columns)
        return
    flips, order = signs(seed, rows, columns, -1), words(seed, rows, columns, -2).argsort(1)
    row_of = _hadamard if columns & (columns - 1) == 0 else _hartley
    for index in order[:, :count].unbind(1):
        yield row_of(index.unsqueeze(1), columns) * flips


def _hadamard(index: Tensor, order: int) -> Tensor:
    """Rows of Sylvester's matrix: (−1)^(number of ones that the binary row and column have in common)."""
    common = index & torch.arange(order, device=index.device)
    for shift in (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1 - 2 * (common & 1).to(torch.int8)


def _hartley(index: Tensor, order: int) -> Tensor:
    """Rows of √2 cos(2πjk/K − π/4), in float64; the same bits on every device."""
    phases = torch.arange(order, dtype=torch.float64) * (2 * math.pi / order)
    table = (phases.cos() + phases.sin()).to(index.device)
    return table[index * torch.arange(order, device=index.device) % order]


def _hashed(x: Tensor) -> Tensor:
    """Mixed in place; shifts are logical though int64 has a sign."""
    for shift, factor in _STEPS * 2:
        x ^= (x >> shift) & ((1 << (_BITS - shift)) - 1)
        x *= _signed(factor)
    return x


def _start(seed: int, stream: int) -> int:
    x = ((seed & _ALL) * _COLUMN + (stream & _ALL) * _STREAM) & _ALL
    for shift, factor in _STEPS * 2:
        x = ((x ^ (x >> shift)) * factor) & _ALL
    return x


def _signed(x: int) -> int:
    return x - (1 << _BITS) if x >> (_BITS - 1) else x


@cache
def _signs_of_bytes(device: torch.device) -> Tensor:
    """(256,) int64, each eight int8 signs: those of the bits of a byte, the lowest first."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device) & 1
    return (1 - 2 * bits).to(torch.int8).view(torch.int64).flatten()
