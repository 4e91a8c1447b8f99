"""curvlinops: matrix-free linear operators and stochastic trace estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.row import Answer, Law, Row, Run
from benchmarks.subject import Subject

COLUMNS, SKETCH = 8, 32


def hutchinson(subject: Subject, batch: int) -> Run:
    from curvlinops import hutchinson_trace

    ggn = gauss_newton(subject, batch)
    return seeded(lambda: hutchinson_trace(ggn, COLUMNS) / (2 * len(subject.images)))


def xtrace(subject: Subject, batch: int) -> Run:
    from curvlinops import xtrace

    ggn = gauss_newton(subject, batch)
    return seeded(lambda: xtrace(ggn, SKETCH) / (2 * len(subject.images)))


def frobenius(subject: Subject, batch: int) -> Run:
    from curvlinops import TransposedJacobianLinearOperator, hutchinson_squared_fro

    transposed = TransposedJacobianLinearOperator(*data(subject, batch), num_data=len(subject.images), check_deterministic=False)
    return seeded(lambda: hutchinson_squared_fro(transposed, COLUMNS) / len(subject.images))


def gauss_newton(subject: Subject, batch: int) -> Any:
    """2 Σ_n J_nᵀJ_n = 2N H_eff, the Gauss-Newton matrix of the summed squared error."""
    from curvlinops import GGNLinearOperator

    model, parameters, batches = data(subject, batch)
    loss = nn.MSELoss(reduction="sum")
    return GGNLinearOperator(model, loss, parameters, batches, num_data=len(subject.images), check_deterministic=False)


def data(subject: Subject, batch: int) -> tuple[nn.Module, list[nn.Parameter], list[tuple[Tensor, Tensor]]]:
    batches = [(x, torch.zeros(len(x), subject.outputs)) for x in subject.images.split(batch)]
    return subject.model, list(subject.model.parameters()), batches


def seeded(trace: Callable[[], Tensor]) -> Run:
    def run(seed: int) -> Answer:
        torch.manual_seed(seed)
        return Answer(trace().double().reshape(1))

    return run


ROWS = tuple(
    Row("curvlinops", method, prepare, law, 32, calls, (32, 16, 8), "curvlinops-for-pytorch", note)
    for method, prepare, law, calls, note in (
        ("hutchinson_trace", hutchinson, Law.DRAWS, 12, f"{COLUMNS} Gauss-Newton matvecs a call"),
        ("hutchinson_squared_fro", frobenius, Law.DRAWS, 12, f"{COLUMNS} matvecs with the transposed Jacobian a call"),
        ("xtrace", xtrace, Law.SKETCH, 5, f"{SKETCH} Gauss-Newton matvecs a call; its error falls as 1/matvecs here"),
    )
)
