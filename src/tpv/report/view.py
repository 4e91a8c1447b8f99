"""Data with a limit and a device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tpv.model.batches import batch_size, batches, count_examples, move, narrow


class View:
    """The first ``limit`` examples of data as :func:`tpv.estimate` takes them, moved to the device batch
    by batch at every pass.

    Args:
        data: a tensor or a re-iterable of batches.
        limit: examples at most; None for all.
        device: where batches are moved; None leaves them.

    Attributes:
        dataset: something whose length is the number of examples, None where that is not known before
            the data are read.
    """

    def __init__(self, data: object, limit: int | None, device: torch.device | None) -> None:
        self._batches, self._limit, self._device = batches(data), limit, device
        known = count_examples(self._batches)
        self.dataset = None if known is None else range(known)[:limit]

    def __iter__(self) -> Iterator[Any]:
        left = self._limit
        for batch in self._batches:
            if left is not None:
                size = batch_size(batch)
                batch, left = narrow(batch, 0, min(left, size), size), max(left - size, 0)
            yield batch if self._device is None else move(batch, self._device)
            if left == 0:
                return
