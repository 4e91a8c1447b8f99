"""Every row in turn, each in fresh processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import Job, measure, tune
from benchmarks.process import fresh
from benchmarks.results import Result, document, failed, judged
from benchmarks.rows import ROWS
from benchmarks.rows.ours import exact
from benchmarks.subject import build, load, save


def run(path: Path, quick: bool, only: str, console: Console) -> dict[str, Any]:
    """Every chosen row in turn."""
    description = fresh(prepare, Job(0, path, quick=quick))
    chosen = [Job(i, path, quick=quick) for i, row in enumerate(ROWS) if i == 0 or only.lower() in row.name.lower()]
    references = fresh(exact_values, chosen, chosen[0].threads)
    plain_batch = batch_of(chosen[0])
    results = []
    for job in chosen:
        with console.status(job.row.name):
            results.append(result(replace(job, plain_batch=plain_batch), references[job.row.images]))
        console.print(f"{job.row.name}: {results[-1].verdict}", style="dim")
    return document(description, plain_batch, results)


def prepare(job: Job) -> str:
    """Write the subject for the other processes to read."""
    subject = build(max((row.quick() if job.quick else row).images for row in ROWS))
    save(subject, job.path)
    return subject.description


def exact_values(jobs: list[Job]) -> dict[int, float]:
    """Tr(H_eff) of the first n images, for every n that a row uses."""
    subject = load(jobs[0].path, max(job.row.images for job in jobs))
    return {n: exact(subject.narrowed(n)) for n in {job.row.images for job in jobs}}


def result(job: Job, reference: float) -> Result:
    """A row's result, or why there is none."""
    row = job.row
    try:
        return judged(row, fresh(measure, replace(job, batch=batch_of(job)), job.threads), reference)
    except ImportError:
        return failed(row, f"not installed: pip install {row.package}")
    except Exception as error:
        return failed(row, f"cannot compute: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def batch_of(job: Job) -> int:
    """The row's best batch size, 0 if it chooses by itself."""
    batches = job.row.batches
    return fresh(tune, job, job.threads) if len(batches) > 1 else batches[0] if batches else 0
