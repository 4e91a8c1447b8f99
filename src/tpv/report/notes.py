"""Warnings as notes of a report."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tpv.common.warn import TPVWarning


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects what tpv itself warns of meanwhile, each once; other warnings go where they went."""
    notes: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.filterwarnings("always", category=TPVWarning)

        def note(
            message: Warning | str, category: type[Warning], filename: str, *more: Any, **options: Any
        ) -> None:
            if not issubclass(category, TPVWarning):
                show(message, category, filename, *more, **options)
            elif str(message) not in notes:
                notes.append(str(message))

        warnings.showwarning = note
        yield notes
