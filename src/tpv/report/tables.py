"""The form of all tables in the terminal."""

from __future__ import annotations

from rich.table import Table


def plain_table(first: str, *numbers: str) -> Table:
    """A column of names, then columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
