"""The route for parameters that no module's calls account for: gradients of the whole model, example by
example.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from tpv.jacobian.formulas.base import Variance
from tpv.model.attention import MathAttention
from tpv.model.batches import has_plain_rows, map_tensors, narrow, per_example, tensors
from tpv.model.linearization import Linearization
from tpv.model.memory import SCRATCH_BYTES


def vectorised_gradients(
    lin: Linearization, names: Sequence[str], batch: Any, v: Tensor
) -> dict[str, Tensor]:
    """Gradients (n, *shape) of ⟨v, z⟩ for each example by ``vmap(grad)``. Raises what :func:`vectorised`
    raises.
    """
    if has_plain_rows(batch, len(v)):
        raise TypeError("only tensors can be vectorised over")
    return _gradients(lin, names, batch, v)


def gradients_one_by_one(
    lin: Linearization, names: Sequence[str], batch: Any, v: Tensor
) -> dict[str, Tensor]:
    """The same by a loop over examples."""
    rows = [
        _gradients_of_one(lin, names, narrow(batch, i, i + 1, len(v)), v[i : i + 1]) for i in range(len(v))
    ]
    zeros = [torch.zeros_like(lin.weights[name]) for name in names]
    columns = zip(names, zeros, zip(*rows, strict=True), strict=True)
    return {name: torch.stack([zero if g is None else g for g in column]) for name, zero, column in columns}


def vectorised(
    lin: Linearization, variance: Mapping[str, Variance], batch: Any, v: Tensor
) -> dict[str, Tensor]:
    """(n,) Σᵢ c_i (∂⟨v, f⟩/∂w_i)² of each parameter in ``variance`` by ``vmap(grad)``; v is (n, ...) like the
    outputs.

    As many examples at a time as have gradients that fit the scratch memory. Cost: about one forward+backward
    pass through the whole model. Raises whatever ``torch.func`` raises for a model that it cannot trace, and
    TypeError for examples that are not tensors.
    """
    if has_plain_rows(batch, len(v)):
        raise TypeError("only tensors can be vectorised over")
    size = sum(lin.weights[name].numel() * lin.weights[name].element_size() for name in variance)
    at_a_time = max(1, SCRATCH_BYTES // size)
    blocks = []
    for start in range(0, len(v), at_a_time):
        stop = min(start + at_a_time, len(v))
        gradients = _gradients(lin, list(variance), narrow(batch, start, stop, len(v)), v[start:stop])
        blocks.append({name: variance[name].square(gradients.pop(name)) for name in variance})
    return {name: torch.cat([block[name] for block in blocks]) for name in variance}


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
        found: dict[str, Tensor] = vmap(grad(inner), in_dims=(None, 0, *[0] * len(leaves)))(point, v, *leaves)
    return found


def one_by_one(
    lin: Linearization, variance: Mapping[str, Variance], batch: Any, v: Tensor
) -> dict[str, Tensor]:
    """The same by a loop over examples: slow, but works for whatever autograd can differentiate."""
    rows = [
        list(_squares(lin, variance, narrow(batch, i, i + 1, len(v)), v[i : i + 1])) for i in range(len(v))
    ]
    return {name: torch.stack(column) for name, column in zip(variance, zip(*rows, strict=True), strict=True)}


def _squares(
    lin: Linearization, variance: Mapping[str, Variance], example: Any, v: Tensor
) -> Iterator[Tensor]:
    for g, c in zip(_gradients_of_one(lin, variance, example, v), variance.values(), strict=True):
        yield (
            torch.zeros((), dtype=torch.float64, device=v.device)
            if g is None
            else c.square(g.unsqueeze(0))[0].double()
        )


def _gradients_of_one(
    lin: Linearization, names: Iterable[str], example: Any, v: Tensor
) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        f = lin.single_example(example)
    parameters = [lin.model.get_parameter(name) for name in names]
    return torch.autograd.grad(f, parameters, v.reshape(f.shape), allow_unused=True)
