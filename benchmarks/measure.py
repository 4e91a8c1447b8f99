"""One row in a process of its own: time beside the plain pass, peak memory, value and scatter."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.row import Answer, Law, Row, Run
from benchmarks.rows import ROWS
from benchmarks.rows.plain import forward_backward
from benchmarks.subject import Subject, load

_PLAIN_IMAGES, _FEWEST_CALLS, _PATIENCE = 128, 3, 12.0


@dataclass(frozen=True)
class Job:
    """Row number ``index``, the file of the subject, the batch sizes, and whether a smoke run is enough."""

    index: int
    path: Path
    batch: int = 0
    plain_batch: int = 64
    quick: bool = False

    @property
    def row(self) -> Row:
        return ROWS[self.index].quick() if self.quick else ROWS[self.index]

    @property
    def threads(self) -> int | None:
        """One for a smoke run, which may have to share the machine; else torch's choice."""
        return 1 if self.quick else None


@dataclass(frozen=True)
class Measurement:
    """What came out of a row.

    Attributes:
        value: mean over calls, nan for the plain pass.
        stderr, freedom: standard error of that mean with the data held fixed, and its degrees of freedom.
        call_error: relative standard error of one call.
        seconds, plain_seconds: best per image, of the row and of the plain pass.
        peak_bytes: memory over what was in use before the first call.
    """

    value: float
    stderr: float
    freedom: float
    call_error: float
    seconds: float
    plain_seconds: float
    peak_bytes: int
    batch: int


def tune(job: Job) -> int:
    """The fastest of the row's batch sizes, each tried twice."""
    row, subject = job.row, load(job.path, job.row.images)

    def trial(batch: int) -> float:
        run = row.prepare(subject, batch)
        return min(seconds(run, 0)[0] for _ in range(2))

    return min(row.batches, key=trial)


def measure(job: Job) -> Measurement:
    """A warm-up call, which shows the memory, then calls that alternate with the plain pass: three, and more while there is time."""
    row, subject = job.row, load(job.path, job.row.images)
    run = row.prepare(subject, job.batch)
    before = peak_memory()
    run(0)
    peak = peak_memory() - before
    plain = repeated_plain(subject, job)
    plain()
    answers, mine, theirs = [], [], []
    started = time.perf_counter()
    for seed in range(row.calls):
        if seed >= _FEWEST_CALLS and time.perf_counter() - started > _PATIENCE:
            break
        theirs.append(plain())
        taken, answer = seconds(run, seed)
        mine.append(taken / len(subject.images))
        answers.append(answer)
    return Measurement(*summary(answers, row.law), min(mine), min(theirs), peak, job.batch)


def repeated_plain(subject: Subject, job: Job) -> Callable[[], float]:
    """Seconds per image of the plain pass over the same images, often enough to be measurable."""
    run = forward_backward(subject, job.plain_batch)
    times = 1 if job.quick else math.ceil(_PLAIN_IMAGES / len(subject.images))

    def plain() -> float:
        return sum(seconds(run, 0)[0] for _ in range(times)) / (times * len(subject.images))

    return plain


def seconds(run: Run, seed: int) -> tuple[float, Answer | None]:
    start = time.perf_counter()
    answer = run(seed)
    return time.perf_counter() - start, answer


def summary(answers: list[Answer | None], law: Law) -> tuple[float, float, float, float]:
    """Mean over calls, its standard error and degrees of freedom, and one call's relative standard error."""
    told = [a for a in answers if a is not None]
    if not told:
        return math.nan, math.nan, math.inf, math.nan
    values = torch.stack([a.values.double() for a in told])
    calls, independent = values.shape
    value = values.mean().item()
    if law is Law.EXACT:
        return value, 0.0, math.inf, 0.0
    errors = [a.stderr for a in told if a.stderr is not None]
    if len(errors) == calls:
        call_error, freedom = math.sqrt(sum(e**2 for e in errors) / calls), math.inf
    else:
        call_error, freedom = math.sqrt(values.var(0).mean().item() / independent), independent * (calls - 1)
    return value, call_error / math.sqrt(calls), freedom, call_error / value


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
