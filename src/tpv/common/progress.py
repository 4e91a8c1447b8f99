"""Progress: stages that advance, as a bar or as events for a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from tpv.common.errors import TPVError
from tpv.common.event import ProgressEvent

Listener = Callable[[ProgressEvent], object]


class Progress:
    """Hands events of stages to a listener. A stage is a ``Progress`` too, so that stages nest.

    The listener hears of a stage when it begins, at each advance, and when a stage inside it has ended.

    Example:
        >>> events = []
        >>> with Progress.of(events.append).stage("measuring", total=2) as bar:
        ...     bar.advance(2)
        >>> [(event.stage, event.done, event.total) for event in events]
        [('measuring', 0, 2), ('measuring', 2, 2)]
    """

    def __init__(
        self,
        listener: Listener | None,
        close: Callable[[], None] | None = None,
        state: ProgressEvent | None = None,
    ) -> None:
        self._listener, self._close, self._state = listener, close, state

    @classmethod
    def of(cls, argument: bool | Listener | Progress) -> Progress:
        """From the ``progress`` argument of a public function: True shows a bar on standard error, a function
        gets every :class:`ProgressEvent`, a ``Progress`` goes on with its own listener.

        Raises:
            TPVError: if it is something else.
            ImportError: for True, without rich.
        """
        if isinstance(argument, Progress):
            return argument
        if argument is False:
            return cls(None)
        if argument is True:
            from tpv.common.bar import Bar

            bar = Bar()
            return cls(bar.show, bar.close)
        if not callable(argument):
            raise TPVError(
                f"progress={argument!r}: give True for a bar on standard error, False for none, or a "
                "function that takes a tpv.ProgressEvent."
            )
        return cls(argument)

    @contextmanager
    def stage(
        self, name: str, *, total: int | None = None, part: int = 1, parts: int = 1
    ) -> Iterator[Progress]:
        """A stage of the work; a bar is closed when the outermost stage ends, by an exception too.

        Args:
            name: what is done, such as "measuring".
            total: how many examples, steps or blocks; None if unknown.
            part, parts: this stage is part ``part`` of ``parts``; inside another stage that is such a part,
                the outer count stays.
        """
        above = self._state
        if above is not None:
            name = f"{above.stage} · {name}"
            part, parts = (above.part, above.parts) if above.parts > 1 else (part, parts)
        inner = Progress(self._listener, None, ProgressEvent(name, part, parts, 0, total))
        token = _current.set(inner)
        try:
            inner._emit()
            yield inner
        finally:
            _current.reset(token)
            if self._close is not None:
                self._close()
        if above is not None:
            self._emit()

    @staticmethod
    def current() -> Progress:
        """The stage that this thread is in, for work deep inside it such as the blocks of a kernel; outside
        any stage, one that nobody listens to.
        """
        return _current.get() or Progress(None)

    def advance(self, n: int = 1, text: str | None = None) -> None:
        """``n`` more are done; ``text`` replaces the remark."""
        if self._state is not None:
            said = self._state.text if text is None else text
            self._state = replace(self._state, done=self._state.done + n, text=said)
            self._emit()

    def _emit(self) -> None:
        if self._listener is not None and self._state is not None:
            self._listener(self._state)


_current: ContextVar[Progress | None] = ContextVar("tpv_progress", default=None)
