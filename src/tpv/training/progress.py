"""A bar for each run of a retraining."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """``Retraining(..., on_step=ProgressBar())`` draws a bar on standard error for each run, gone when the
    run is done.

    Needs ``pip install 'tpv[cli]'``.

    Raises:
        ImportError: without rich.
    """

    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError as error:
            raise ImportError("ProgressBar needs rich: pip install 'tpv[cli]'") from error
        self._new: Callable[[], Progress] = functools.partial(
            Progress, console=Console(stderr=True), transient=True
        )
        self._running: tuple[Progress, TaskID] | None = None

    def __call__(self, run: int, step: int, steps: int, loss: float) -> None:
        """As :class:`tpv.Retraining` calls it."""
        if self._running is None or step == 1:
            self._close()
            bars = self._new()
            bars.start()
            self._running = bars, bars.add_task("", total=steps)
        bars, task = self._running
        bars.update(
            task,
            completed=step,
            description=f"{f'run {run}' if run else 'control run'}, mean squared error {loss:.3g}",
        )
        if step == steps:
            self._close()

    def _close(self) -> None:
        if self._running is not None:
            self._running[0].stop()
            self._running = None
