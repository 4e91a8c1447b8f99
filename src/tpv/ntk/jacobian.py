"""Rows of the Jacobian J for some columns at a time, and the inner products of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv._batches import batch_size, narrow
from tpv.chunking import SCRATCH_BYTES
from tpv.linearization import Linearization
from tpv.sweep.per_example import shared_cotangents

GRAM_BYTES = 2**29
Columns = list[tuple[str, int, int]]
"""(parameter, start, stop): some of the flattened entries of some parameters."""


@dataclass(frozen=True)
class JacobianRows:
    """J(x) for examples and the outputs of each, one row for every output, examples first.

    Args:
        lin: the model at w*.
        chunks: () → batches with their places among the rows.
        rows: in all.
        chunk_size: examples at a time.
    """

    lin: Linearization
    chunks: Callable[[], Iterable[tuple[Any, slice]]]
    rows: int
    chunk_size: int

    def columns(self, columns: Columns) -> Tensor:
        """(rows, number of columns). Cost: a forward pass and one backward pass for each output of an example."""
        weight = self.lin.weights[columns[0][0]]
        out = torch.empty(self.rows, sum(stop - start for _, start, stop in columns), dtype=weight.dtype, device=weight.device)
        for batch, places in self.chunks():
            self._fill(batch, columns, out[places])
        return out

    def _fill(self, batch: Any, columns: Columns, out: Tensor) -> None:
        size, names = batch_size(batch), [name for name, _, _ in columns]
        out = out.view(size, -1, out.shape[1])
        outputs = out.shape[1]
        width = sum(self.lin.weights[name].numel() for name in names) * out.element_size()
        at_a_time = max(1, min(size, self.chunk_size, SCRATCH_BYTES // (width * outputs)))
        cotangents = max(1, min(outputs, 10 * self.chunk_size // at_a_time, SCRATCH_BYTES // (width * at_a_time)))
        basis = torch.eye(outputs, dtype=out.dtype, device=out.device)
        for start in range(0, size, at_a_time):
            part = narrow(batch, start, min(start + at_a_time, size), size)
            n = batch_size(part)
            shape = self._shape(part)
            for k in range(0, outputs, cotangents):
                v = basis[k : k + cotangents]
                found = shared_cotangents(self.lin, names, part, n, v.reshape(len(v), *shape))
                out[start : start + n, k : k + len(v)] = torch.cat(
                    [found[name].reshape(n, len(v), -1)[..., a:b] for name, a, b in columns], dim=-1
                )

    @torch.no_grad()
    def _shape(self, part: Any) -> torch.Size:
        return self.lin(narrow(part, 0, 1, batch_size(part))).shape[1:]


def gram(left: JacobianRows, right: JacobianRows, names: Sequence[str]) -> Tensor:
    """J Jᵀ between two sets of rows, (rows, rows), by blocks of columns that fit in 512 MiB.

    Cost: for every block a forward pass and K backward passes over both, and 2·rows·rows·P floating-point operations in all.
    """
    weights, same = left.lin.weights, left is right
    size = next(iter(weights.values())).element_size()
    width = max(1, GRAM_BYTES // (size * (left.rows if same else left.rows + right.rows)))
    total: Tensor | None = None
    for columns in blocks([(name, weights[name].numel()) for name in names], width):
        a = left.columns(columns)
        b = a if same else right.columns(columns)
        total = a @ b.T if total is None else total.addmm_(a, b.T)
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
