"""Numbers as printed in the tables."""

from __future__ import annotations

from typing import Any

COLUMNS = ("method", "n", "÷ reference", "u", "u to 1 %", "MiB", "")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One cell for each column."""
    numbers = (
        relative(row),
        short(row["cost"]),
        short(row["cost_to_one_percent"]),
        short(row["peak_mib"], 0),
    )
    verdict = row["verdict"] + (", busy" if row["busy"] else "")
    return (f"{row['library']} {row['method']}", str(row["examples"]), *numbers, verdict)


def relative(row: dict[str, Any]) -> str:
    """The value divided by the reference."""
    if row["relative"] is None:
        return "–"
    if not row["relative_stderr"]:
        return f"{row['relative']:.5f}"
    return f"{row['relative']:.3f} ± {row['relative_stderr']:.3f}"


def short(number: float | None, places: int = 2) -> str:
    """About three digits."""
    if number is None:
        return "–"
    return f"{number:.{places}f}" if number < 20 else f"{number:,.0f}"


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> str:
    """A Markdown table, right-aligned except for the columns ``left``."""
    rule = "".join("|---" if i in left else "|--:" for i in range(len(header))) + "|"
    return "\n".join(
        ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]
    )
