"""Warnings that point at the user's line, once per call."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

_OURS = {"tpv", "torch", "contextlib", "functools"}
_issued: ContextVar[dict[Any, Any] | None] = ContextVar("issued", default=None)


class TPVWarning(UserWarning):
    """What every warning of tpv is, to filter them by."""


def warn(message: str) -> None:
    """Warn with the line of the user's code that called tpv.

    Python's default filter shows it once in every call of a verb, however often the call comes to it.
    """
    frame = _users_frame()
    issued = _issued.get()
    warnings.warn_explicit(
        message,
        TPVWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry={} if issued is None else issued,
    )


def begin_call() -> Callable[[], None]:
    """From here on a repeated warning is the same one; the function that it gives ends that. A call within a
    call belongs to the outer one.
    """
    outer = _issued.get()
    _issued.set({} if outer is None else outer)

    def end() -> None:
        _issued.set(outer)

    return end


def _users_frame() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame = frame.f_back
    return frame
