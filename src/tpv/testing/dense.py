"""The dense Jacobian: the reference for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tpv.model.batches import batch_size, narrow
from tpv.model.layers import layer_of
from tpv.model.linearization import Forward, Linearization
from tpv.model.outputs import OutputSpec, as_output
from tpv.model.twin import twin_of
from tpv.perturbations import PerturbationSpec


def dense_jacobian(
    model: nn.Module, batch: Any, forward: Forward | None = None, output: OutputSpec = "logits"
) -> dict[str, Tensor]:
    """J by brute force: parameter name → (N, K, *shape), one example and one output at a time.

    The reference for everything else. Cost: N·K backward passes of single examples.

    Example:
        >>> import torch, tpv.testing
        >>> tpv.testing.dense_jacobian(torch.nn.Linear(3, 2), torch.ones(5, 3))["weight"].shape
        torch.Size([5, 2, 2, 3])
    """
    n = batch_size(batch)
    examples = []
    with twin_of(model, forward) as (twin, remapped), torch.enable_grad():
        lin = Linearization(twin, remapped, as_output(output))
        parameters = [twin.get_parameter(name) for name in lin.weights]
        for i in range(n):
            outputs = lin.differentiable(narrow(batch, i, i + 1, n)).flatten()
            rows = [torch.autograd.grad(y, parameters, retain_graph=True, allow_unused=True) for y in outputs]
            examples.append(
                [
                    torch.stack([torch.zeros_like(p) if r[j] is None else r[j] for r in rows])
                    for j, p in enumerate(parameters)
                ]
            )
    return {name: torch.stack([example[j] for example in examples]) for j, name in enumerate(lin.weights)}


def dense_tpv(
    model: nn.Module,
    batch: Any,
    perturbation: PerturbationSpec,
    forward: Forward | None = None,
    output: OutputSpec = "logits",
) -> dict[str, float]:
    """First-order TPV by brute force: layer → value and "total", or only "total" for a fixed displacement.

    Args:
        model, batch, forward, output: as in :func:`tpv.estimate`, with a single batch.
        perturbation: one with variances, or a deterministic one.

    Example:
        >>> import torch, tpv, tpv.testing
        >>> model = torch.nn.Linear(3, 2).double()
        >>> round(tpv.testing.dense_tpv(model, torch.ones(5, 3).double(), tpv.Isotropic(0.1))["total"], 6)
        0.08
    """
    bound = perturbation.bind(Linearization(model))
    jacobian = dense_jacobian(model, batch, forward, output)
    if perturbation.deterministic:
        delta = bound.sample(torch.Generator().manual_seed(0))
        change = torch.stack([(jacobian[n] * d).flatten(2).sum(2) for n, d in delta.items()]).sum(0)
        return {"total": change.square().sum(1).mean().item()}
    variance = bound.variance()
    assert variance is not None, "dense_tpv needs a perturbation with variances, or a deterministic one"
    layers: dict[str, float] = {}
    for name, c in variance.items():
        value = (jacobian[name].square() * c).flatten(1).sum(1).mean().item()
        layers[layer_of(name)] = layers.get(layer_of(name), 0.0) + value
    return {**layers, "total": sum(layers.values())}
