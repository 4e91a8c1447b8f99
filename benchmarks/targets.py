"""Performance targets of tpv, and whether a section's numbers meet them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.causes import cause
from benchmarks.rows.loop import LOOP

FLOOR_RATIO, LOOP_RATIO = 1.15, {"cpu": 3.0, "cuda": 50.0}
OURS, PLAIN = "tpv", "plain"


@dataclass(frozen=True)
class Target:
    """A ratio of two rows' costs: at most ``wanted`` if it is a ceiling, otherwise at least."""

    words: str
    measured: float
    wanted: float
    ceiling: bool
    because: str

    @property
    def met(self) -> bool:
        return self.measured <= self.wanted if self.ceiling else self.measured >= self.wanted


@dataclass(frozen=True)
class Rival:
    """A row of another library next to the cheapest row of tpv with equal accuracy."""

    name: str
    theirs: float
    ours: float
    accuracy: str
    because: str

    @property
    def behind(self) -> bool:
        return self.ours < self.theirs


def targets(section: dict[str, Any]) -> list[Target]:
    """The targets for which the section has both rows."""
    return [*_floors(section), *_loops(section)]


def rivals(section: dict[str, Any]) -> list[Rival]:
    """Every row of another library that produced a number."""
    rivals = []
    for row in section["rows"]:
        if row["library"] not in (OURS, PLAIN) and row["cost_to_one_percent"] is not None:
            exact = row["convergence"] == "exact"
            mine = _cheapest(section, exact)
            if mine is not None:
                theirs, ours = row["cost_to_one_percent"], mine["cost_to_one_percent"]
                rivals.append(
                    Rival(_name(row), theirs, ours, "exact" if exact else "1 %", cause(section, row, mine))
                )
    return rivals


def _floors(section: dict[str, Any]) -> Iterator[Target]:
    for method, floor, words in (
        ("Exact", "forward + K backward", "Exact ÷ forward + K backward"),
        ("Hutchinson(1)", "forward + backward", "Hutchinson(1) ÷ forward + backward"),
    ):
        row, below = _row(section, OURS, method), _row(section, PLAIN, floor)
        if row and below:
            yield Target(words, row["cost"] / below["cost"], FLOOR_RATIO, True, cause(section, row, below))


def _loops(section: dict[str, Any]) -> Iterator[Target]:
    for row in section["rows"]:
        if row["library"] == LOOP and row["cost"] is not None:
            mine = _cheapest(section, row["convergence"] == "exact")
            if mine is not None:
                words = f"{_name(row)} ÷ tpv {mine['method']}"
                ratio = row["cost_to_one_percent"] / mine["cost_to_one_percent"]
                yield Target(words, ratio, LOOP_RATIO[section["device"]], False, cause(section, row, mine))


def _cheapest(section: dict[str, Any], exact: bool) -> dict[str, Any] | None:
    """tpv's exact row, or its row that reaches 1 % at the lowest cost."""
    rows = [
        r
        for r in section["rows"]
        if r["library"] == OURS and r["cost"] is not None and (not exact or r["convergence"] == "exact")
    ]
    return min(rows, key=lambda r: r["cost_to_one_percent"], default=None)


def _row(section: dict[str, Any], library: str, method: str) -> dict[str, Any] | None:
    return next(
        (
            r
            for r in section["rows"]
            if (r["library"], r["method"]) == (library, method) and r["cost"] is not None
        ),
        None,
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['library']} {row['method']}"
