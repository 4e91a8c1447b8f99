"""Every row of one network on one device in turn, each in fresh processes."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.job import Job
from benchmarks.machine import machine
from benchmarks.measure import measure, tune, tuned
from benchmarks.process import fresh
from benchmarks.reference import MOST_OUTPUTS, Reference, references
from benchmarks.results import Result, failed, flagged, judged
from benchmarks.rows import ROWS
from benchmarks.subjects import Spec, save


def section(spec: Spec, device: str, quick: bool, only: str, console: Console) -> dict[str, Any]:
    """Everything that the page reports about one network on one device, ready for JSON."""
    spec = spec.small() if quick else spec
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(i, spec, Path(folder) / "subject.pt", device, quick) for i in range(len(ROWS))]
        sizes = fresh(prepare, jobs)
        selected = [job for job in jobs if job.index == 0 or only.lower() in job.row.name.lower()]
        reference = fresh(references, selected, selected[0].threads)
        plain_batch = fresh(tune, selected[0], selected[0].threads)
        results = []
        for job in selected:
            with console.status(job.row.name):
                results.append(
                    result(
                        replace(job, plain_batch=plain_batch), reference[job.row.examples], sizes["outputs"]
                    )
                )
            console.print(f"{spec.name} on {device}, {job.row.name}: {results[-1].verdict}", style="dim")
    return {
        "subject": spec.name,
        "device": device,
        "description": spec.description,
        **sizes,
        "reference_stderr": max(r.stderr / r.value for r in reference.values()),
        "plain_examples": selected[0].unit.examples,
        "plain_batch": plain_batch,
        "machine": machine(device),
        "rows": [asdict(result) for result in flagged(results)],
    }


def prepare(jobs: list[Job]) -> dict[str, int]:
    """Write the subject for the other processes to read, and return its sizes."""
    save(jobs[0].spec, max(job.row.examples for job in jobs), jobs[0].path)
    subject = jobs[0].subject(1)
    return {"outputs": subject.outputs, "parameters": sum(p.numel() for p in subject.parameters)}


def result(job: Job, reference: Reference, outputs: int) -> Result:
    """A row's result, or the reason why there is none."""
    row = job.row
    if row.every_output and outputs > MOST_OUTPUTS:
        return failed(
            replace(row, note=""),
            f"cannot run: a backward pass or a row of the Jacobian for each of {outputs:,} outputs",
        )
    try:
        return judged(row, measured(job), reference)
    except ImportError as error:
        return failed(row, f"not installed ({error}): pip install {row.package}")
    except Exception as error:
        return failed(row, f"cannot run: {type(error).__name__}: {_first_line(error)}")


def measured(job: Job) -> Any:
    if job.device == "cuda":
        return fresh(tuned, job)
    return fresh(measure, replace(job, batch=fresh(tune, job, job.threads)), job.threads)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")[:160]
