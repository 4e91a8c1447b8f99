"""curvlinops: matrix-free linear operators and stochastic trace estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.row import Answer, Convergence, Row, Run
from benchmarks.subjects import Subject

COLUMNS, SKETCH, THIRDS = 8, 32, 33


def hutchinson(subject: Subject, batch: int) -> Run:
    from curvlinops import hutchinson_trace

    ggn = gauss_newton(subject, batch)
    return seeded(lambda: hutchinson_trace(ggn, COLUMNS) / (2 * len(subject.inputs)))


def hutchpp(subject: Subject, batch: int) -> Run:
    from curvlinops import hutchpp_trace

    ggn = gauss_newton(subject, batch)
    return seeded(lambda: hutchpp_trace(ggn, THIRDS) / (2 * len(subject.inputs)))


def xtrace(subject: Subject, batch: int) -> Run:
    from curvlinops import xtrace

    ggn = gauss_newton(subject, batch)
    return seeded(lambda: xtrace(ggn, SKETCH) / (2 * len(subject.inputs)))


def frobenius(subject: Subject, batch: int) -> Run:
    from curvlinops import TransposedJacobianLinearOperator, hutchinson_squared_fro

    transposed = TransposedJacobianLinearOperator(
        *data(subject, batch), num_data=len(subject.inputs), check_deterministic=False
    )
    return seeded(lambda: hutchinson_squared_fro(transposed, COLUMNS) / len(subject.inputs))


def gauss_newton(subject: Subject, batch: int) -> Any:
    """2 Σ_n J_nᵀJ_n = 2N H_eff, the Gauss-Newton matrix of the summed squared error."""
    from curvlinops import GGNLinearOperator

    model, parameters, batches = data(subject, batch)
    loss = nn.MSELoss(reduction="sum")
    return GGNLinearOperator(
        model, loss, parameters, batches, num_data=len(subject.inputs), check_deterministic=False
    )


def data(subject: Subject, batch: int) -> tuple[nn.Module, list[nn.Parameter], list[tuple[Tensor, Tensor]]]:
    return (
        subject.model,
        subject.parameters,
        [(x, subject.zeros(len(x))) for x in subject.inputs.split(batch)],
    )


def seeded(trace: Callable[[], Tensor]) -> Run:
    """With the math attention kernel, which has forward-mode derivatives."""

    def run(seed: int) -> Answer:
        torch.manual_seed(seed)
        with sdpa_kernel(SDPBackend.MATH):
            return Answer(trace().double().reshape(1).cpu())

    return run


ASSUMED = (
    "; its error is assumed to decrease as 1/matvecs, and few examples, whose matrix has a rank of at most "
    "nK, favour it"
)
ROWS = tuple(
    Row(
        "curvlinops",
        method,
        prepare,
        convergence,
        32,
        calls,
        (8, 16, 32),
        "--no-deps curvlinops-for-pytorch",
        note,
    )
    for method, prepare, convergence, calls, note in (
        ("hutchinson_trace", hutchinson, Convergence.DRAWS, 12, f"{COLUMNS} Gauss-Newton matvecs a call"),
        ("hutchpp_trace", hutchpp, Convergence.SKETCH, 5, f"{THIRDS} Gauss-Newton matvecs a call{ASSUMED}"),
        ("xtrace", xtrace, Convergence.SKETCH, 5, f"{SKETCH} Gauss-Newton matvecs a call{ASSUMED}"),
        (
            "hutchinson_squared_fro",
            frobenius,
            Convergence.DRAWS,
            12,
            f"{COLUMNS} matvecs with the transposed Jacobian a call",
        ),
    )
)
