"""One row in a process of its own: time beside the plain pass, peak memory, value and scatter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.clock import seconds
from benchmarks.job import Job
from benchmarks.memory import Peak
from benchmarks.row import Answer, Convergence
from benchmarks.rows.plain import forward_backward
from benchmarks.subjects import Subject

_FEWEST_CALLS, _PATIENCE, _LONG = 3, 8.0, 1.0


@dataclass(frozen=True)
class Measurement:
    """The measurement of one row.

    Attributes:
        value: mean over calls; nan for the plain passes.
        stderr, freedom: standard error of that mean with the data held fixed, and its degrees of freedom.
        call_error: relative standard error of one call.
        seconds, plain_seconds: best time per example, of the row and of the plain pass.
        peak_bytes: memory above what was in use before the first call.
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
    """The fastest of the row's batch sizes that fits in memory, each tried twice unless it is slow; 0 if
    the row has none.
    """
    row = job.row
    if len(row.batches) < 2:
        return row.batches[0] if row.batches else 0
    subject = job.subject(row.examples)

    def trial(batch: int) -> float:
        try:
            run = row.prepare(subject, batch)
            first = seconds(run, 0, job.device)[0]
            return first if first > _LONG else seconds(run, 0, job.device)[0]
        except torch.OutOfMemoryError:
            return math.inf

    return min(row.batches, key=trial)


def measure(job: Job) -> Measurement:
    """A warm-up call, which measures peak memory, then calls that alternate with the plain pass: three, and
    more while there is time.
    """
    row, subject = job.row, job.subject(job.row.examples)
    run = row.prepare(subject, job.batch)
    peak = Peak(job.device)
    run(0)
    peak_bytes = peak.bytes()
    plain = plain_pass(job.subject(job.unit.examples), job.plain_batch, job.device)
    answers, row_seconds, plain_seconds = [], [], []
    started = time.perf_counter()
    for seed in range(row.calls):
        if seed >= _FEWEST_CALLS and time.perf_counter() - started > _PATIENCE:
            break
        plain_seconds.append(plain())
        taken, answer = seconds(run, seed, job.device)
        row_seconds.append(taken / len(subject.inputs))
        answers.append(answer)
    return Measurement(
        *summary(answers, row.convergence), min(row_seconds), min(plain_seconds), peak_bytes, job.batch
    )


def tuned(job: Job) -> Measurement:
    """Both in one process, for a GPU, where starting another costs more than it gains."""
    return measure(replace(job, batch=tune(job)))


def plain_pass(subject: Subject, batch: int, device: str) -> Callable[[], float]:
    """Seconds per example of the plain pass, already warm."""
    run = forward_backward(subject, batch)
    run(0)
    return lambda: seconds(run, 0, device)[0] / len(subject.inputs)


def summary(answers: list[Answer | None], convergence: Convergence) -> tuple[float, float, float, float]:
    """Mean over calls, its standard error and degrees of freedom, and one call's relative standard error."""
    available = [a for a in answers if a is not None]
    if not available:
        return math.nan, math.nan, math.inf, math.nan
    values = torch.stack([a.values.double() for a in available])
    calls, independent = values.shape
    value = values.mean().item()
    if convergence is Convergence.EXACT:
        return value, 0.0, math.inf, 0.0
    errors = [a.stderr for a in available if a.stderr is not None]
    if len(errors) == calls:
        call_error, freedom = math.sqrt(sum(e**2 for e in errors) / calls), math.inf
    else:
        call_error, freedom = math.sqrt(values.var(0).mean().item() / independent), independent * (calls - 1)
    return value, call_error / math.sqrt(calls), freedom, call_error / value
