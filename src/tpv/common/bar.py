"""One line on standard error that shows the stage, how far it is and how long it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpv.common.event import ProgressEvent

if TYPE_CHECKING:
    import rich.progress

_WIDTH, _TEXT = 80, 39


class Bar:
    """Shown from the first event until it is closed, and gone then; nothing where there is no terminal.

    Raises:
        ImportError: without rich.
    """

    def __init__(self) -> None:
        try:
            import rich.progress  # noqa: F401
        except ImportError as error:
            raise ImportError("progress=True needs rich: pip install 'tpv[cli]'") from error
        self._live: rich.progress.Progress | None = None
        self._label = ""

    def show(self, event: ProgressEvent) -> None:
        """The line for this event."""
        if self._live is None:
            self._live = _started()
        progress, label = self._live, _label(event)
        if label != self._label:
            for task in progress.task_ids:
                progress.remove_task(task)
            self._label = label
            progress.add_task(label, total=event.total, completed=event.done, remark=event.text)
        progress.update(progress.task_ids[0], completed=event.done, remark=event.text)

    def close(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live, self._label = None, ""


def _started() -> rich.progress.Progress:
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    console.width = min(console.width, _WIDTH)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(12),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    seen = console.is_terminal or console.is_jupyter
    progress = Progress(*columns, console=console, transient=True, disable=not seen)
    try:
        progress.start()
    except LiveError:  # the caller shows a bar of their own, and a terminal has one
        progress.disable = True
    return progress


def _label(event: ProgressEvent) -> str:
    """'2/8 Quantization(bits… · train · measuring', in at most 39 characters where the stage allows it."""
    part = f"{event.part}/{event.parts} " if event.parts > 1 else ""
    first, dot, rest = event.stage.partition(" · ")
    free = max(_TEXT - len(part) - len(dot) - len(rest), 4)
    return f"{part}{first if len(first) <= free else first[: free - 1] + '…'}{dot}{rest}"
