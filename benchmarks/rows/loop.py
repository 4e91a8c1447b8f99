"""One image at a time with plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.row import Answer, Law, Row, Run
from benchmarks.rows.torch_func import random_signs
from benchmarks.subject import Subject


def looping(subject: Subject, cotangents: Callable[[int], Tensor]) -> Run:
    """``cotangents``: a seed to (N, R, K), summed over R."""
    parameters = list(subject.model.parameters())

    def square(outputs: Tensor, v: Tensor) -> float:
        gradients = torch.autograd.grad(outputs, parameters, v[None], retain_graph=True)
        return sum(g.double().square().sum().item() for g in gradients)

    def run(seed: int) -> Answer:
        values = []
        for x, vs in zip(subject.images, cotangents(seed), strict=True):
            outputs = subject.model(x[None])
            values.append(sum(square(outputs, v) for v in vs))
        return Answer(torch.tensor(values))

    return run


def exact(subject: Subject, batch: int) -> Run:
    k = subject.outputs
    return looping(subject, lambda seed: torch.eye(k).expand(len(subject.images), k, k))


def probe(subject: Subject, batch: int) -> Run:
    return looping(subject, lambda seed: random_signs(len(subject.images), subject.outputs, seed)[:, None])


ROWS = (
    Row("image loop", "K backward passes", exact, images=32),
    Row("image loop", "one probe", probe, Law.IMAGES, images=32),
)
