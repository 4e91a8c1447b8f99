"""Progress of passes that follow each other, told by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tpv.ntk.jacobian import BLOCK, LOG

Tell = Callable[[str, str, int, int | None], None]
"""(perturbation, stage, examples done, examples in all or None)"""


class Stages:
    """The ``progress`` of passes over data: each stage is told when it begins, so that work before its first
    example has a name.

    A stage ends with its last example; where nobody knows how many there are, a count that does not grow
    begins the next.

    Args:
        perturbation: what is measured.
        stages: the names of the passes, in order.
        tell: called with (perturbation, stage, done, in all or None), for the blocks of a kernel too.
    """

    def __init__(self, perturbation: str, stages: Sequence[str], tell: Tell) -> None:
        self._perturbation, self._left, self._tell = perturbation, iter(stages), tell
        self._stage, self._last = "", 0
        self._begin()

    def __call__(self, done: int, total: int | None) -> None:
        if done <= self._last:
            self._begin()
        self._last = done
        self._tell(self._perturbation, self._stage, done, total)
        if done == total:
            self._begin()

    def _begin(self) -> None:
        self._last = 0
        following = next(self._left, None)
        if following is not None:
            self._stage = following
            self._tell(self._perturbation, following, 0, None)

    @contextmanager
    def watching_kernels(self) -> Iterator[None]:
        """Meanwhile blocks of kernels are told too, as "train, kernel"."""
        watch, level = _Watch(self._kernel), LOG.level
        LOG.addHandler(watch)
        LOG.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            LOG.removeHandler(watch)
            LOG.setLevel(level)

    def _kernel(self, done: int, blocks: int) -> None:
        self._tell(self._perturbation, f"{self._stage}, kernel", done, blocks)
        if done == blocks:
            self._tell(self._perturbation, self._stage, 0, None)


class _Watch(logging.Handler):
    def __init__(self, told: Callable[[int, int], None]) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == BLOCK and isinstance(record.args, tuple):
            done, blocks = (int(str(number)) for number in record.args)
            self._told(done, blocks)
