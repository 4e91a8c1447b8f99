"""Products of the Jacobian of a training set with vectors, without writing it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tpv.model.linearization import Linearization
from tpv.model.products import jvp
from tpv.ntk.training_set import TrainingSet

Tangents = Mapping[str, Tensor]
"""R displacements of the weights: parameter name → (R, *shape)."""


def pull(train: TrainingSet, names: Sequence[str], v: Tensor) -> dict[str, Tensor]:
    """Jᵀv for v (nK, R): parameter name → (R, *shape). Cost: one forward and R backward passes."""
    lin = train.lin
    parameters = [lin.model.get_parameter(name) for name in names]
    sums = [p.new_zeros(v.shape[1], *p.shape, requires_grad=False) for p in parameters]
    for batch, places in train.chunks():
        with torch.enable_grad():
            z = lin.differentiable(batch)
        train.check_order(z.detach(), places)
        for r in range(v.shape[1]):
            cotangent = v[places, r].reshape(z.shape).to(z.dtype)
            more = r + 1 < v.shape[1]
            gradients = torch.autograd.grad(z, parameters, cotangent, retain_graph=more, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total[r] += gradient
    return dict(zip(names, sums, strict=True))


def push(lin: Linearization, tangents: Tangents, parts: Iterable[Any]) -> Tensor:
    """Jδ for R displacements at all examples, (rows, R). Cost: R Jacobian-vector products."""
    count = len(next(iter(tangents.values())))
    deltas = [{name: d[r] for name, d in tangents.items()} for r in range(count)]
    products = [torch.stack([jvp(lin, part, d)[1].reshape(-1) for d in deltas], 1) for part in parts]
    return torch.cat(products)
