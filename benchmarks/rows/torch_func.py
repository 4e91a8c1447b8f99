"""torch.func: per-example Jacobians and gradients by vmap, with the math attention kernel, which has a
batching rule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.row import Answer, Convergence, Row, Run
from benchmarks.subjects import Subject

Weights = dict[str, Tensor]


def single(subject: Subject) -> tuple[Weights, Callable[[Weights, Tensor], Tensor]]:
    """The weights, and f(w, x) for one example, flat."""
    weights = {name: p.detach() for name, p in subject.model.named_parameters()}
    return weights, lambda w, x: functional_call(subject.model, w, (x[None],)).flatten()


def jacobians(subject: Subject, batch: int) -> Run:
    weights, f = single(subject)
    per_example = vmap(jacrev(f), (None, 0))

    def run(seed: int) -> Answer:
        with sdpa_kernel(SDPBackend.MATH):
            return Answer(torch.cat([squares(per_example(weights, x)) for x in subject.inputs.split(batch)]))

    return run


def probes(subject: Subject, batch: int) -> Run:
    weights, f = single(subject)
    per_example = vmap(grad(lambda w, x, v: f(w, x) @ v), (None, 0, 0))

    def run(seed: int) -> Answer:
        chunks = zip(subject.inputs.split(batch), subject.signs(seed).flatten(1).split(batch), strict=True)
        with sdpa_kernel(SDPBackend.MATH):
            return Answer(torch.cat([squares(per_example(weights, x, v)) for x, v in chunks]))

    return run


def squares(gradients: Weights) -> Tensor:
    """(N,) squared norms over all parameters and outputs."""
    return torch.stack([g.flatten(1).double().square().sum(1) for g in gradients.values()]).sum(0).cpu()


JACREV = Row("torch.func", "vmap(jacrev)", jacobians, batches=(8, 16, 32), every_output=True)
GRAD = Row("torch.func", "vmap(grad), one probe", probes, Convergence.EXAMPLES, batches=(16, 32, 64))
ROWS = (JACREV, GRAD)
