"""A row of the table: one way to compute Tr(H_eff)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from benchmarks.subject import Subject

REFERENCE_IMAGES = 2000
TARGET = 0.01


class Law(Enum):
    """How a method's own error falls, the data held fixed."""

    EXACT = "exact"
    IMAGES = "1/√(images × probes)"
    DRAWS = "1/√draws"
    SKETCH = "1/matvecs"

    def calls(self, error: float, images: int) -> float:
        """Calls for a relative error of 1 % on 2,000 images, from a call's relative error on ``images``."""
        ratio = error / TARGET
        if self is Law.EXACT:
            return 1.0
        if self is Law.IMAGES:
            return max(1.0, ratio**2 * images / REFERENCE_IMAGES)
        return max(1.0, ratio**2) if self is Law.DRAWS else ratio


@dataclass(frozen=True)
class Answer:
    """What a call returns.

    Attributes:
        values: (m,) estimates whose mean is the call's; their randomness is independent (m = 1, or one per image).
        stderr: the call's standard error with the data held fixed, if the method tells; else it is
            worked out from the scatter over calls.
    """

    values: Tensor
    stderr: float | None = None


Run = Callable[[int], Answer | None]


@dataclass(frozen=True)
class Row:
    """A method, and how it is to be measured.

    Attributes:
        library, method: its name.
        prepare: (subject, batch size) to the function of a seed that is timed; set-up and imports belong here.
        law: how its error falls.
        images: how many it is run on.
        calls: how often it is timed at most.
        batches: batch sizes of which the fastest is used; empty if the method chooses by itself.
        package: what ``pip install`` wants to hear.
        note: what a reader should know.
    """

    library: str
    method: str
    prepare: Callable[[Subject, int], Run]
    law: Law = Law.EXACT
    images: int = 64
    calls: int = 3
    batches: tuple[int, ...] = ()
    package: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}"

    def quick(self) -> Row:
        """The same on few images, to see that it runs."""
        return replace(self, images=min(self.images, 8), batches=self.batches[:1])
