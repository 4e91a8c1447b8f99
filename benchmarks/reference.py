"""The value that every row is compared with: tpv's exact value, or its average over many probes where there
are too many outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tpv
from benchmarks.job import Job
from benchmarks.subjects import Subject

MOST_OUTPUTS = 1000
_SWEEPS, _FEWEST_PROBES, _MOST_PROBES = 512, 4, 64


@dataclass(frozen=True)
class Reference:
    """Tr(H_eff) of the first examples, and its standard error, 0 if exact."""

    value: float
    stderr: float = 0.0


def references(jobs: list[Job]) -> dict[int, Reference]:
    """For every number of examples that a row uses, the average over disjoint segments of the examples."""
    sizes = sorted({job.row.examples for job in jobs})
    subject = jobs[0].subject(sizes[-1])
    averages, total, variance, start = {}, 0.0, 0.0, 0
    for stop in sizes:
        segment = Subject(subject.model, subject.inputs[start:stop], subject.shape)
        mean = exact(segment) if subject.outputs <= MOST_OUTPUTS else sampled(segment)
        total += mean.value * (stop - start)
        variance += (mean.stderr * (stop - start)) ** 2
        averages[stop], start = Reference(total / stop, math.sqrt(variance) / stop), stop
    return averages


def exact(subject: Subject) -> Reference:
    return Reference(
        tpv.estimate(subject.model, subject.inputs, tpv.Isotropic(1.0), estimator=tpv.Exact()).value
    )


def sampled(subject: Subject) -> Reference:
    """Many probes for a few examples, few for many."""
    probes = min(_MOST_PROBES, max(_FEWEST_PROBES, _SWEEPS // len(subject.inputs)))
    one, unit = tpv.Hutchinson(1), tpv.Isotropic(1.0)
    results = [
        tpv.estimate(subject.model, subject.inputs, unit, estimator=one, generator=1000 + seed)
        for seed in range(probes)
    ]
    return Reference(
        sum(r.value for r in results) / probes, math.sqrt(sum(r.mc_stderr**2 for r in results)) / probes
    )
