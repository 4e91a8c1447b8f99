"""The route for parameters that no layer formula covers: per-example gradients by ``torch.func``, exact but slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from tpv._batches import has_plain_rows, map_tensors, narrow, per_example, tensors
from tpv.linearization import Linearization


def vectorised(lin: Linearization, names: Sequence[str], batch: Any, v: Tensor) -> dict[str, Tensor]:
    """Per-example gradients (n, \\*shape) of ⟨v, f⟩ by ``vmap(grad)``; v is (n, ...) like the outputs.

    Cost: about one forward+backward pass through the whole model.
    Raises whatever ``torch.func`` raises for a model that it cannot trace, and TypeError for examples that are not tensors.
    """
    if has_plain_rows(batch, len(v)):
        raise TypeError("only tensors can be vectorised over")
    point = {name: lin.weights[name] for name in names}
    n = len(v)
    leaves = [t for t in tensors(batch) if per_example(t, n)]

    def inner(w: dict[str, Tensor], v: Tensor, *rows: Tensor) -> Tensor:
        following = iter(rows)
        single = map_tensors(batch, lambda t: next(following).unsqueeze(0) if per_example(t, n) else t)
        return (lin.at(w, single).squeeze(0) * v).sum()

    gradients: dict[str, Tensor] = vmap(grad(inner), in_dims=(None, 0, *[0] * len(leaves)))(point, v, *leaves)
    return gradients


def one_by_one(lin: Linearization, names: Sequence[str], batch: Any, v: Tensor) -> dict[str, Tensor]:
    """The same by a loop over examples: slow, but works for whatever autograd can differentiate."""
    parameters = [lin.model.get_parameter(name) for name in names]
    rows = []
    for i in range(len(v)):
        with torch.enable_grad():
            f = lin(narrow(batch, i, i + 1, len(v)))
        found = torch.autograd.grad(f, parameters, v[i : i + 1].reshape(f.shape), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)])
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
