"""tpv, at its default chunk size."""

from __future__ import annotations

import functools
import math

import torch

import tpv
from benchmarks.row import Answer, Convergence, Row, Run
from benchmarks.subjects import Subject

STD = 1e-4


def estimate(estimator: tpv.Estimator, subject: Subject, batch: int) -> Run:
    def run(seed: int) -> Answer:
        r = tpv.estimate(
            subject.model, subject.inputs, tpv.Isotropic(STD), estimator=estimator, generator=seed
        )
        stderr = r.mc_stderr / STD**2 if math.isfinite(r.mc_stderr) else None
        return Answer(torch.tensor([r.value / STD**2]), stderr)

    return run


EXACT = Row("tpv", "Exact", functools.partial(estimate, tpv.Exact()), examples=512, every_output=True)
HUTCHINSON = Row(
    "tpv",
    "Hutchinson(1)",
    functools.partial(estimate, tpv.Hutchinson(1)),
    Convergence.EXAMPLES,
    examples=1024,
)
ROWS = (
    EXACT,
    HUTCHINSON,
    Row(
        "tpv",
        "LinearizedMonteCarlo(1)",
        functools.partial(estimate, tpv.LinearizedMonteCarlo(1)),
        Convergence.DRAWS,
        256,
        16,
        note="one Jacobian-vector product with a random δ a call",
    ),
    Row(
        "tpv",
        "MonteCarlo(1)",
        functools.partial(estimate, tpv.MonteCarlo(1)),
        Convergence.DRAWS,
        256,
        16,
        note=f"one finite random δ of standard deviation {STD} a call",
    ),
)
