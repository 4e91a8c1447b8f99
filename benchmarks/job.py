"""The task of one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.row import Row
from benchmarks.rows import ROWS, plain
from benchmarks.subjects import Spec, Subject, load


@dataclass(frozen=True)
class Job:
    """Row number ``index`` on a network whose weights and examples are stored at ``path``; a batch size of 0
    is still to be determined.
    """

    index: int
    spec: Spec
    path: Path
    device: str
    quick: bool = False
    batch: int = 0
    plain_batch: int = 0

    @property
    def row(self) -> Row:
        return ROWS[self.index].sized(self.spec.share, self.device, self.quick)

    @property
    def unit(self) -> Row:
        return plain.UNIT.sized(self.spec.share, self.device, self.quick)

    @property
    def threads(self) -> int | None:
        """One for a smoke run, which may have to share the machine; otherwise torch's default."""
        return 1 if self.quick else None

    def subject(self, examples: int) -> Subject:
        return load(self.spec, self.path, examples, self.device)
