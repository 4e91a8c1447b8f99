"""The same examples in other batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from tpv.model.batches import (
    batch_size,
    batches,
    count_examples,
    has_plain_rows,
    map_tensors,
    per_example,
    rows_of,
    tensors,
)


def chosen(data: Iterable[Any], keep: Sequence[bool]) -> list[Any]:
    """Batches with the examples whose place in the data is marked."""
    selected, start = [], 0
    for batch in data:
        size = batch_size(batch)
        rows = [i for i in range(size) if keep[start + i]]
        start += size
        if rows:
            selected.append(rows_of(batch, rows, size))
    return selected


class LargeBatches:
    """The same examples in batches of up to 1024 and 256 MiB, where batches of tensors alone can be
    joined.
    """

    def __init__(self, data: object) -> None:
        self._batches = batches(data)
        known = count_examples(self._batches)
        self.dataset = None if known is None else range(known)

    def __iter__(self) -> Iterator[Any]:
        waiting: list[Any] = []
        for batch in self._batches:
            if waiting and not (_alike(waiting[-1], batch) and _fits([*waiting, batch])):
                yield _joined(waiting)
                waiting = []
            waiting.append(batch)
        if waiting:
            yield _joined(waiting)


def _fits(parts: list[Any]) -> bool:
    return (
        sum(map(batch_size, parts)) <= 1024
        and sum(t.numel() * t.element_size() for t in tensors(parts)) <= 2**28
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether two batches differ in nothing but their number of examples, and every tensor counts them."""
    shapes = [
        [(t.shape[1:], t.dtype, t.device, per_example(t, batch_size(batch))) for t in tensors(batch)]
        for batch in (a, b)
    ]
    plain = not any(has_plain_rows(batch, batch_size(batch)) for batch in (a, b))
    return (
        type(a) is type(b) and plain and shapes[0] == shapes[1] and all(counted for *_, counted in shapes[0])
    )


def _joined(parts: list[Any]) -> Any:
    columns = iter(list(zip(*map(tensors, parts), strict=True)))
    return parts[0] if len(parts) == 1 else map_tensors(parts[0], lambda t: torch.cat(next(columns)))
