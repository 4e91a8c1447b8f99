"""Whether two data sets have the same examples, whatever their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tpv.common.compare import same_content
from tpv.model.batches import batch_size, batches, inputs, narrow


def same_examples(a: object, b: object, *, whole_batch: bool) -> bool:
    """Whether two data sets have equal inputs in the same order, in whatever batches.

    Args:
        a, b: as in :func:`tpv.estimate`.
        whole_batch: whether what the default ``forward`` does not use, such as labels, counts too.
    """
    if a is b:
        return True
    left, right = (_Reader(data, whole_batch) for data in (a, b))
    while left.remaining() and right.remaining():
        n = min(left.remaining(), right.remaining())
        if not same_content(left.take(n), right.take(n)):
            return False
    return left.remaining() == right.remaining() == 0


class _Reader:
    """The examples of a data set, any number at a time that does not cross the end of a batch."""

    def __init__(self, data: object, whole_batch: bool) -> None:
        self._batches: Iterator[Any] = iter(batches(data))
        self._whole_batch = whole_batch
        self._batch: Any = None
        self._start = self._size = 0

    def remaining(self) -> int:
        """How many examples are left of the batch, or of the next one; 0 at the end of the data."""
        while self._start == self._size:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            self._batch, self._start, self._size = batch, 0, batch_size(batch)
        return self._size - self._start

    def take(self, n: int) -> Any:
        """The next n of them."""
        start, self._start = self._start, self._start + n
        used = self._batch if self._whole_batch else inputs(self._batch)
        return narrow(used, start, self._start, self._size)
