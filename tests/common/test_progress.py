"""Stages, events and the bar."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import rich.errors
import rich.progress
from rich.console import Console

import tpv
from tpv.common.progress import Progress


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard error as a terminal of 80 columns."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stderr(screen):
        yield screen


def test_events_name_stage_part_and_count() -> None:
    events: list[tpv.ProgressEvent] = []
    progress = Progress.of(events.append)
    with progress.stage("train", part=1, parts=2) as train, train.stage("measuring", total=3) as bar:
        bar.advance(2)
        bar.advance(text="loss 0.5")
    with progress.stage("test", part=2, parts=2):
        pass
    assert events == [
        tpv.ProgressEvent("train", 1, 2),
        tpv.ProgressEvent("train · measuring", 1, 2, 0, 3),
        tpv.ProgressEvent("train · measuring", 1, 2, 2, 3),
        tpv.ProgressEvent("train · measuring", 1, 2, 3, 3, "loss 0.5"),
        tpv.ProgressEvent("train", 1, 2),
        tpv.ProgressEvent("test", 2, 2),
    ]


def test_the_inner_part_counts_where_the_outer_stage_is_no_part() -> None:
    events: list[tpv.ProgressEvent] = []
    with Progress.of(events.append).stage("all") as outer, outer.stage("half", part=1, parts=2):
        pass
    assert (events[1].part, events[1].parts) == (1, 2)


def test_silence_and_what_is_refused() -> None:
    with Progress.of(False).stage("measuring", total=1) as bar:
        bar.advance()
    made = Progress.of(print)
    assert Progress.of(made) is made
    for wrong in ("bar", 1, None):
        with pytest.raises(tpv.TPVError, match=r"progress=.*: give True"):
            Progress.of(wrong)  # type: ignore[arg-type]


def test_the_bar_shows_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "Quantization(bits=4, symmetric=True, error='actual')"
    with terminal(monkeypatch) as screen:
        whole = Progress.of(True).stage(spec, part=2, parts=8)
        with whole as outer, outer.stage("train") as train, train.stage("measuring", total=100) as bar:
            bar.advance(25, "loss 0.25")
            time.sleep(0.3)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "2/8 Quantization(b… · train · measuring" in shown
    assert " 25/100" in shown
    assert "loss 0.25" in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exceptions_close_the_bar(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def work(progress: Progress) -> None:
        with progress.stage("outer") as outer, outer.stage("inner", total=2) as inner:
            inner.advance()
            raise error

    with terminal(monkeypatch) as screen:
        progress = Progress.of(True)
        with pytest.raises(error):
            work(progress)
        hidden, shown = (screen.getvalue().count(f"\x1b[?25{end}") for end in "lh")
        assert hidden == shown == 1
        with progress.stage("again", total=1) as bar:
            bar.advance()
    assert "again" in screen.getvalue()


def test_without_a_terminal_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress.of(True).stage("measuring", total=1) as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_the_callers_own_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen, rich.progress.Progress(console=Console(file=screen)) as own:
        task = own.add_task("mine", total=1)
        with Progress.of(True).stage("measuring", total=1) as bar:
            bar.advance()
        assert own.live.is_started
        own.update(task, completed=1)


def test_without_rich_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"tpv\[cli\]"):
        Progress.of(True)


def test_work_deep_inside_finds_its_stage_and_nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tpv.ProgressEvent] = []

    def kernel() -> None:
        with Progress.current().stage("kernel", total=1) as stage:
            stage.advance()

    def work() -> None:
        with Progress.of(events.append).stage("measuring"):
            kernel()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    seen = [event.stage for event in events]
    assert seen == ["measuring", "measuring · kernel", "measuring · kernel", "measuring"]
    kernel()
    thread = threading.Thread(target=kernel)
    with Progress.of(events.append).stage("again"):
        thread.start()
        thread.join()
    assert [event.stage for event in events[4:]] == ["again"]


def test_a_terminal_that_is_taken_shows_no_second_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> None:
        raise rich.errors.LiveError("Only one live display may be active at once")

    monkeypatch.setattr("rich.progress.Progress.start", taken)
    with terminal(monkeypatch) as screen, Progress.of(True).stage("measuring", total=1) as bar:
        bar.advance()
    assert "measuring" not in screen.getvalue()
