"""laplace-torch: its diagonal posterior precision of a regression with unit noise, N diag(H_eff), by each of
its backends.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.row import Answer, Row, Run
from benchmarks.rows.backpack import REWRITTEN, as_modules
from benchmarks.subjects import Subject


def diagonal(backend: str, subject: Subject, batch: int) -> Run:
    import laplace.curvature
    from laplace import Laplace

    model = as_modules(subject) if backend == "BackPackGGN" else subject.flat()
    loader = DataLoader(
        TensorDataset(subject.inputs, subject.zeros(len(subject.inputs)).flatten(1)), batch_size=batch
    )
    kind = getattr(laplace.curvature, backend)

    def run(seed: int) -> Answer:
        posterior = Laplace(
            model, "regression", subset_of_weights="all", hessian_structure="diag", backend=kind
        )
        with sdpa_kernel(SDPBackend.MATH):
            posterior.fit(loader)
        return Answer(torch.tensor([posterior.H.double().sum().item() / len(subject.inputs)]))

    return run


_PACKAGE = "--no-deps laplace-torch asdfghjkl torchmetrics lightning-utilities"
ROWS = tuple(
    Row(
        "laplace-torch",
        f"diag, {backend}",
        functools.partial(diagonal, backend),
        batches=batches,
        package=_PACKAGE,
        note=note,
        every_output=True,
    )
    for backend, batches, note in (
        (
            "CurvlinopsGGN",
            (1, 2, 4),
            "its diagonal is a `jacrev` over the batch, which it holds as one matrix",
        ),
        ("AsdlGGN", (8, 16, 32), ""),
        ("BackPackGGN", (8, 16, 32), REWRITTEN),
    )
)
