"""A row of the table: one way to compute Tr(H_eff)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from benchmarks.subjects import Subject

REFERENCE_EXAMPLES = 2000
TARGET = 0.01
GPU_GROWTH, QUICK_EXAMPLES, FEWEST_EXAMPLES = 8, 8, 4


class Law(Enum):
    """How a method's own error falls, the data held fixed."""

    EXACT = "exact"
    EXAMPLES = "1/√(examples × probes)"
    DRAWS = "1/√draws"
    SKETCH = "1/matvecs"

    def calls(self, error: float, examples: int) -> float:
        """Calls for a relative error of 1 % on 2,000 examples, from a call's relative error on
        ``examples``.
        """
        ratio = error / TARGET
        if self is Law.EXACT:
            return 1.0
        if self is Law.EXAMPLES:
            return max(1.0, ratio**2 * examples / REFERENCE_EXAMPLES)
        return max(1.0, ratio**2) if self is Law.DRAWS else ratio


@dataclass(frozen=True)
class Answer:
    """What a call returns.

    Attributes:
        values: (m,) estimates whose mean is the call's; their randomness is independent (m = 1, or one per
            example).
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
        prepare: (subject, batch size) to the function of a seed that is timed; set-up and imports belong
            here.
        law: how its error falls.
        examples: how many it is run on.
        calls: how often it is timed at most.
        batches: batch sizes of which the fastest is used; empty if the method chooses by itself.
        package: what ``pip install`` wants to hear.
        note: what a reader should know.
        every_output: whether it takes a pass, or a row of a Jacobian in memory, for each output.
        single: whether it takes one example at a time, so that a GPU does not call for more of them.
    """

    library: str
    method: str
    prepare: Callable[[Subject, int], Run]
    law: Law = Law.EXACT
    examples: int = 64
    calls: int = 3
    batches: tuple[int, ...] = ()
    package: str = ""
    note: str = ""
    every_output: bool = False
    single: bool = False

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}"

    def sized(self, share: int, device: str, quick: bool) -> Row:
        """For a network whose examples are ``share`` times dearer, more of everything on a GPU, little of it
        for a smoke run.
        """
        if quick:
            return replace(self, examples=min(self.examples, QUICK_EXAMPLES), batches=self.batches[:1])
        growth = 1 if self.single or device == "cpu" else GPU_GROWTH
        examples = max(FEWEST_EXAMPLES, self.examples * growth // share)
        batches = sorted({min(batch * g, examples) for batch in self.batches for g in (1, growth)})
        return replace(self, examples=examples, batches=tuple(batches))
