"""The route for parameters that no module's calls account for: gradients of the whole model, example by
example.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from tpv.model.attention import MathAttention
from tpv.model.batches import has_plain_rows, map_tensors, narrow, per_example, tensors
from tpv.model.linearization import Linearization
from tpv.model.memory import SCRATCH_BYTES

Reduce = Callable[[str, Tensor], Tensor]
"""(parameter, per-example gradients (n, *shape)) ↦ what is wanted of them, (n, ...)."""


def vectorized(
    lin: Linearization, names: Sequence[str], batch: Any, v: Tensor, reduce: Reduce
) -> dict[str, Tensor]:
    """Reduced gradients of ⟨v, z⟩ for each example by ``vmap(grad)``; v is (n, ...) like the outputs.

    As many examples at a time as have gradients that fit the scratch memory. Cost: about one forward+backward
    pass through the whole model. Raises whatever ``torch.func`` raises for a model that it cannot trace, and
    TypeError for examples that are not tensors.
    """
    if has_plain_rows(batch, len(v)):
        raise TypeError("only tensors can be vectorized over")
    size = sum(lin.weights[name].numel() * lin.weights[name].element_size() for name in names)
    at_a_time = max(1, SCRATCH_BYTES // max(size, 1))
    blocks = []
    for start in range(0, len(v), at_a_time):
        stop = min(start + at_a_time, len(v))
        gradients = _gradients(lin, names, narrow(batch, start, stop, len(v)), v[start:stop])
        blocks.append({name: reduce(name, gradients.pop(name)) for name in names})
    return {name: torch.cat([block[name] for block in blocks]) for name in names}


def one_by_one(
    lin: Linearization, names: Sequence[str], batch: Any, v: Tensor, reduce: Reduce
) -> dict[str, Tensor]:
    """The same by a loop over examples: slow, but works for whatever autograd can differentiate."""
    rows = [
        {
            name: reduce(name, gradient.unsqueeze(0))
            for name, gradient in _gradients_of_one(lin, names, narrow(batch, i, i + 1, len(v)), v[i : i + 1])
        }
        for i in range(len(v))
    ]
    return {name: torch.cat([row[name] for row in rows]) for name in names}


@contextmanager
def vmappable() -> Iterator[None]:
    """Attention by the kernel that ``vmap`` has rules for, and no warning that it is slow over some other
    operation.
    """
    with MathAttention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _gradients(lin: Linearization, names: Sequence[str], batch: Any, v: Tensor) -> dict[str, Tensor]:
    point, n = {name: lin.weights[name] for name in names}, len(v)
    leaves = [t for t in tensors(batch) if per_example(t, n)]

    def inner(w: dict[str, Tensor], v: Tensor, *rows: Tensor) -> Tensor:
        following = iter(rows)
        single = map_tensors(batch, lambda t: next(following).unsqueeze(0) if per_example(t, n) else t)
        return (lin.at(w, single).squeeze(0) * v).sum()

    with vmappable():
        gradients: dict[str, Tensor] = vmap(grad(inner), in_dims=(None, 0, *[0] * len(leaves)))(
            point, v, *leaves
        )
    return gradients


def _gradients_of_one(
    lin: Linearization, names: Sequence[str], example: Any, v: Tensor
) -> Iterable[tuple[str, Tensor]]:
    with torch.enable_grad():
        z = lin.differentiable(example)
    parameters = [lin.model.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(z, parameters, v.reshape(z.shape), allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        yield name, torch.zeros_like(lin.weights[name]) if gradient is None else gradient
