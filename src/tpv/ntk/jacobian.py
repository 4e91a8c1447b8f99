"""Rows of the Jacobian J for some columns at a time, and the inner products of all rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.progress import Progress
from tpv.jacobian import Sweep

GRAM_BYTES = 2**28
Columns = list[tuple[str, int, int]]
"""(parameter, start, stop): some of the flattened entries of some parameters."""


@dataclass(frozen=True)
class JacobianRows:
    """J(x) for examples and the outputs of each, one row for every output, examples first.

    Args:
        sweep: of the parameters that J is taken by.
        chunks: () → batches with their places among the rows.
        rows: in all.
        check: called with the outputs at w* and their places.
    """

    sweep: Sweep
    chunks: Callable[[], Iterable[tuple[Any, slice]]]
    rows: int
    check: Callable[[Tensor, slice], None] | None = None

    def columns(self, columns: Columns) -> Tensor:
        """(rows, number of columns). Cost: a forward pass and one backward pass for each output of an
        example.
        """
        weights, names = self.sweep.lin.weights, [name for name, _, _ in columns]
        width = sum(stop - start for _, start, stop in columns)
        out = torch.empty(
            self.rows, width, dtype=widest(weights, self.sweep.names), device=weights[names[0]].device
        )
        for batch, places in self.chunks():
            with self.sweep.jacobian(batch) as (z, gradients):
                n = len(z)
                if self.check is not None:
                    self.check(z, places)
                here = out[places].view(n, -1, out.shape[1])
                for k, v in enumerate(basis(z)):
                    by_name = gradients(v, names)
                    at = 0
                    for name, start, stop in columns:
                        here[:, k, at : at + stop - start] = by_name[name].reshape(n, -1)[:, start:stop]
                        at += stop - start
        return out


def widest(weights: Mapping[str, Tensor], names: Iterable[str]) -> torch.dtype:
    """A dtype that holds products of gradients by all of these weights: that of the weights, but no half
    precision.
    """
    return functools.reduce(torch.promote_types, (weights[name].dtype for name in names), torch.float32)


def basis(z: Tensor) -> Iterator[Tensor]:
    """The K cotangents (N, K) that pick one output each."""
    n, k = z.reshape(len(z), -1).shape
    for index in range(k):
        v = z.new_zeros(n, k)
        v[:, index] = 1
        yield v


def gram(left: JacobianRows, right: JacobianRows, names: Sequence[str]) -> Tensor:
    """J Jᵀ between two sets of rows, (rows, rows), by blocks of columns that fit in 256 MiB.

    Cost: for every block a forward pass and K backward passes over both, and 2·rows·rows·P floating-point
        operations in all.
    """
    weights, same = left.sweep.lin.weights, left is right
    size = widest(weights, names).itemsize
    width = max(1, GRAM_BYTES // (size * (left.rows if same else left.rows + right.rows)))
    total: Tensor | None = None
    parts = list(blocks([(name, weights[name].numel()) for name in names], width))
    with Progress.current().stage("kernel", total=len(parts)) as stage:
        for columns in parts:
            a = left.columns(columns)
            b = a if same else right.columns(columns)
            total = a @ b.T if total is None else total.addmm_(a, b.T)
            stage.advance()
    assert total is not None
    return total


def blocks(parameters: Iterable[tuple[str, int]], width: int) -> Iterator[Columns]:
    """Columns in blocks of at most ``width``: whole parameters where they fit, else slices of one.

    Example:
        >>> list(blocks([("a", 3), ("b", 2), ("c", 7)], 5))
        [[('a', 0, 3), ('b', 0, 2)], [('c', 0, 5)], [('c', 5, 7)]]
    """
    block: Columns = []
    free = width
    for name, size in parameters:
        if size > free and block:
            yield block
            block, free = [], width
        for start in range(0, size, width):
            stop = min(start + width, size)
            block.append((name, start, stop))
            free -= stop - start
            if free == 0:
                yield block
                block, free = [], width
    if block:
        yield block
