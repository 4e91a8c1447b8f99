"""The squared error on the training set, in chunks that fit in memory, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import is_out_of_memory
from tpv.common.warn import warn
from tpv.model.batches import batch_size, narrow
from tpv.model.linearization import masked
from tpv.model.memory import release_memory
from tpv.ntk.training_set import TrainingSet

Chunk = tuple[Any, slice]
"""Examples, and their places in a vector over all outputs."""


class Sums:
    """Additive: the sum of squared residuals, the number of its terms, and its gradient."""

    def __init__(self) -> None:
        self.squares, self.terms = 0.0, 0
        self.gradient: list[Tensor] = []

    def add(self, squares: float, terms: int, gradient: list[Tensor]) -> None:
        """Of another chunk."""
        self.squares, self.terms = self.squares + squares, self.terms + terms
        self.gradient = (
            [a + b for a, b in zip(self.gradient, gradient, strict=True)] if self.gradient else gradient
        )

    @property
    def mse(self) -> float:
        """Mean over the terms."""
        return self.squares / max(self.terms, 1)


class Objective:
    """Σ (z(w) − target)² over examples and outputs that count.

    Args:
        train: the training set; where memory runs out, its chunks are halved, with a warning.
        targets: one number for each of ``train.rows``, 0 where nothing counts.
    """

    def __init__(self, train: TrainingSet, targets: Tensor) -> None:
        self._train, self._targets = train, targets
        self._limit = train.chunk_size

    def gradients(self, weights: Mapping[str, Tensor], size: int | None) -> Iterator[Sums]:
        """Sums over one minibatch of ``size`` consecutive examples (None: all) after another, without end, at
        the weights of then.
        """
        first = True
        while True:
            sums = Sums()
            for chunk, ends in minibatches(self._read(), size):
                self._add(sums, weights, chunk, initial=first)
                if ends:
                    first = False
                    yield sums
                    sums = Sums()

    @torch.no_grad()
    def mse(self, weights: Mapping[str, Tensor]) -> float:
        """Mean squared error over the whole training set. Cost: one forward pass."""
        total = 0.0
        for part, rows in self._read().chunks():
            total += self._squares(self._train.lin.at(weights, part), rows).item()
        return total / self._train.outputs

    def _read(self) -> TrainingSet:
        self._train.chunk_size = self._limit
        return self._train

    def _add(self, sums: Sums, weights: Mapping[str, Tensor], chunk: Chunk, *, initial: bool) -> None:
        n = batch_size(chunk[0])
        if n <= self._limit and self._fitted(sums, weights, chunk, initial=initial):
            return
        if n <= self._limit:
            self._limit = n // 2
            release_memory()
            warn(f"out of memory in retraining: continuing with {self._limit} examples at a time.")
        step = self._limit
        for start in range(0, n, step):
            self._add(sums, weights, cut(chunk, start, min(start + step, n)), initial=initial)

    def _fitted(self, sums: Sums, weights: Mapping[str, Tensor], chunk: Chunk, *, initial: bool) -> bool:
        """Whether the chunk fitted in memory and is part of the sums now."""
        try:
            sums.add(*self._evaluated(weights, chunk, initial=initial))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size(chunk[0]) == 1:
                raise
            return False
        return True

    def _evaluated(
        self, weights: Mapping[str, Tensor], chunk: Chunk, *, initial: bool
    ) -> tuple[float, int, list[Tensor]]:
        part, rows = chunk
        lin, leaves = self._train.lin, list(weights.values())
        with torch.enable_grad():
            z = lin.differentiable(part, weights)
            if initial:
                self._train.check_order(z.detach(), rows)
            squares = self._squares(z, rows)
            gradients = torch.autograd.grad(squares, leaves, allow_unused=True)
        gradient = [
            torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)
        ]
        return squares.item(), int(masked(torch.ones_like(z), part).sum().item()), gradient

    def _squares(self, z: Tensor, rows: slice) -> Tensor:
        return (z - self._targets[rows].view_as(z)).square().sum()


def minibatches(train: TrainingSet, size: int | None) -> Iterator[tuple[Chunk, bool]]:
    """One pass over the data in its order: chunks, and whether a minibatch ends there."""
    size, done = size or train.examples, 0
    for chunk in train.chunks():
        n, start = batch_size(chunk[0]), 0
        while start < n:
            stop = min(n, start + size - done % size)
            done += stop - start
            yield cut(chunk, start, stop), done % size == 0 or done == train.examples
            start = stop


def cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    """Examples start … stop of a chunk."""
    part, rows = chunk
    n = batch_size(part)
    width = (rows.stop - rows.start) // n
    return narrow(part, start, stop, n), slice(rows.start + start * width, rows.start + stop * width)
