"""One example at a time with plain autograd: K backward passes, one probe, and the paper's weight-space
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.row import Answer, Convergence, Row, Run
from benchmarks.rows.torch_func import Weights, single
from benchmarks.subjects import Subject


def looping(subject: Subject, cotangents: Callable[[int], Tensor]) -> Run:
    """``cotangents`` maps a seed to (N, R, K); squares are summed over R."""

    def square(outputs: Tensor, v: Tensor) -> Tensor:
        gradients = torch.autograd.grad(outputs, subject.parameters, v, retain_graph=True)
        return torch.stack([g.double().square().sum() for g in gradients]).sum()

    def run(seed: int) -> Answer:
        values = []
        for x, vs in zip(subject.inputs, cotangents(seed), strict=True):
            outputs = subject.model(x[None]).flatten()
            values.append(torch.stack([square(outputs, v) for v in vs]).sum())
        return Answer(torch.stack(values).cpu())

    return run


def exact(subject: Subject, batch: int) -> Run:
    k = subject.outputs
    basis = torch.eye(k, device=subject.inputs.device)
    return looping(subject, lambda seed: basis.expand(len(subject.inputs), k, k))


def probe(subject: Subject, batch: int) -> Run:
    return looping(subject, lambda seed: subject.signs(seed).flatten(1)[:, None])


def own_draws(subject: Subject, batch: int) -> Run:
    def run(seed: int) -> Answer:
        return Answer(displaced(subject, normal(subject, seed)))

    return run


def shared_draw(subject: Subject, batch: int) -> Run:
    def run(seed: int) -> Answer:
        delta = next(normal(subject, seed))
        return Answer(displaced(subject, iter(lambda: delta, None)).mean().reshape(1))

    return run


def displaced(subject: Subject, deltas: Iterator[Weights]) -> Tensor:
    """‖J(x) δ‖² of every example, each with the next δ."""
    weights, f = single(subject)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        values = [
            jvp(lambda w, x=x: f(w, x), (weights,), (next(deltas),))[1].double().square().sum()
            for x in subject.inputs
        ]
    return torch.stack(values).cpu()


def normal(subject: Subject, seed: int) -> Iterator[Weights]:
    """Independent δ ~ N(0, I), without end."""
    generator = torch.Generator(subject.inputs.device).manual_seed(seed)
    while True:
        yield {
            name: torch.empty_like(p, requires_grad=False).normal_(generator=generator)
            for name, p in subject.model.named_parameters()
        }


LOOP = "example loop"
OWN_NOTE = "the paper's estimator: a Jacobian-vector product with an independent random δ for every example"
ROWS = (
    Row(LOOP, "K backward passes", exact, examples=32, every_output=True, single=True),
    Row(LOOP, "one probe", probe, Convergence.EXAMPLES, examples=32, single=True),
    Row(
        LOOP,
        "weight-space draws",
        own_draws,
        Convergence.EXAMPLES,
        examples=32,
        calls=12,
        single=True,
        note=OWN_NOTE,
    ),
    Row(
        LOOP,
        "weight-space draw, shared",
        shared_draw,
        Convergence.DRAWS,
        examples=32,
        calls=12,
        single=True,
        note="the same δ for all examples",
    ),
)
