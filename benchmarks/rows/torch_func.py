"""torch.func: per-example Jacobians and gradients by vmap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from benchmarks.row import Answer, Law, Row, Run
from benchmarks.subject import Subject

Weights = dict[str, Tensor]


def single(subject: Subject) -> tuple[Weights, Callable[[Weights, Tensor], Tensor]]:
    """The weights, and f(w, x) for one image."""
    weights = {name: p.detach() for name, p in subject.model.named_parameters()}
    return weights, lambda w, x: functional_call(subject.model, w, (x[None],))[0]


def jacobians(subject: Subject, batch: int) -> Run:
    weights, f = single(subject)
    per_example = vmap(jacrev(f), (None, 0))

    def run(seed: int) -> Answer:
        return Answer(torch.cat([squares(per_example(weights, x)) for x in subject.images.split(batch)]))

    return run


def probes(subject: Subject, batch: int) -> Run:
    weights, f = single(subject)
    per_example = vmap(grad(lambda w, x, v: f(w, x) @ v), (None, 0, 0))

    def run(seed: int) -> Answer:
        signs = random_signs(len(subject.images), subject.outputs, seed)
        pieces = zip(subject.images.split(batch), signs.split(batch), strict=True)
        return Answer(torch.cat([squares(per_example(weights, x, v)) for x, v in pieces]))

    return run


def squares(gradients: Weights) -> Tensor:
    """(N,) squared norms over all parameters and outputs."""
    return torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()]).sum(0)


def random_signs(n: int, k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, k), generator=generator).float() * 2 - 1


ROWS = (
    Row("torch.func", "vmap(jacrev)", jacobians, batches=(16, 8, 32)),
    Row("torch.func", "vmap(grad), one probe", probes, Law.IMAGES, batches=(16, 32, 64)),
)
