"""A section as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.cells import COLUMNS, cells, short
from benchmarks.targets import targets


def terminal(section: dict[str, Any]) -> Group:
    """At most 120 columns wide."""
    table = Table(title=f"{section['description']}; {section['device']}", box=box.SIMPLE_HEAD, padding=(0, 1))
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if i in (0, 6) else "right", no_wrap=True)
    rows = section["rows"]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        style = "bold red" if row["verdict"] == "DISAGREES" else "dim" if row["cost"] is None else ""
        table.add_row(
            *cells(row),
            style=style,
            end_section=following is not None and following["library"] != row["library"],
        )
    notes = [Text(f"{row['library']} {row['method']}: {row['note']}") for row in rows if row["note"]]
    aims = [Text(f"{t.words}: {short(t.measured)}, {'met' if t.met else 'missed'}") for t in targets(section)]
    return Group(table, *notes, *aims)
