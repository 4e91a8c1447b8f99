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


class Convergence(Enum):
    """How a method's own error decreases, the data held fixed."""

    EXACT = "exact"
    EXAMPLES = "1/√(examples × probes)"
    DRAWS = "1/√draws"
    SKETCH = "1/matvecs"

    def calls(self, error: float, examples: int) -> float:
        """Calls needed for a relative error of 1 % on 2,000 examples, given one call's relative error on
        ``examples``.
        """
        ratio = error / TARGET
        if self is Convergence.EXACT:
            return 1.0
        if self is Convergence.EXAMPLES:
            return max(1.0, ratio**2 * examples / REFERENCE_EXAMPLES)
        return max(1.0, ratio**2) if self is Convergence.DRAWS else ratio


@dataclass(frozen=True)
class Answer:
    """The result of one call.

    Attributes:
        values: (m,) independent estimates whose mean is the call's estimate (m = 1, or one per example).
        stderr: the call's standard error with the data held fixed, if the method reports one; otherwise it
            is computed from the scatter over calls.
    """

    values: Tensor
    stderr: float | None = None


Run = Callable[[int], Answer | None]


@dataclass(frozen=True)
class Row:
    """A method, and how to measure it.

    Attributes:
        library, method: its name.
        prepare: maps (subject, batch size) to the timed function of a seed; set-up and imports belong here.
        convergence: how its error decreases.
        examples: how many examples it runs on.
        calls: maximum number of timed calls.
        batches: candidate batch sizes, of which the fastest is used; empty if the method has its own default.
        package: arguments for ``pip install``.
        note: a remark for the page.
        every_output: whether it needs a pass, or a row of a Jacobian in memory, for each output.
        single: whether it processes one example at a time, so that a GPU does not need more of them.
    """

    library: str
    method: str
    prepare: Callable[[Subject, int], Run]
    convergence: Convergence = Convergence.EXACT
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
        """Scaled to a network whose examples cost ``share`` times as much: more of everything on a GPU,
        little of it for a smoke run.
        """
        if quick:
            return replace(self, examples=min(self.examples, QUICK_EXAMPLES), batches=self.batches[:1])
        growth = 1 if self.single or device == "cpu" else GPU_GROWTH
        examples = max(FEWEST_EXAMPLES, self.examples * growth // share)
        batches = sorted({min(batch * g, examples) for batch in self.batches for g in (1, growth)})
        return replace(self, examples=examples, batches=tuple(batches))
