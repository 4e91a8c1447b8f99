"""The terminal: text as it is, at most 80 columns wide."""

from __future__ import annotations

from rich.console import Console

WIDTH = 80


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is and is at most 80 columns wide."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    made.width = min(made.width, WIDTH)
    return made
