r"""Jδ, by the fastest route that is proven: ⟨v, Jδ⟩ = ⟨Jᵀv, δ⟩ with random v and δ, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp as forward_mode_jvp

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.model.attention import MathAttention
from tpv.model.batches import batch_size, ends, narrow
from tpv.model.float64 import cast, everywhere, in_dtype, precise
from tpv.model.hidden import refuse_hidden_use
from tpv.model.linearization import Linearization

Delta = Mapping[str, Tensor]
Route = Callable[[Linearization, Any, Delta], tuple[Tensor, Tensor]]
"""(model, batch, δ) ↦ z (N, ...) and Jδ (N, ...)."""

_MOST_BACKWARDS = 64


def jvp(lin: Linearization, batch: Any, delta: Delta) -> tuple[Tensor, Tensor]:
    """z(w*; x) and J(x) δ, each (N, ...), by the first of these routes that is proven:

    forward mode; the derivative of v ↦ ⟨Jᵀv, δ⟩; ⟨∇f_k, δ⟩ of each output of each example; central
    differences in float64. The last two warn.

    Raises:
        TPVError: if none is proven, or a parameter has an effect that autograd does not see.

    Cost: about 1.2 forward+backward passes by forward mode; two backward passes more for a model
        with an operation that has no forward-mode formula; K backward passes by gradients of the outputs.
        Once for a model, the proof: two passes over two examples.
    """
    if (padded := lin.padded(batch)) is not batch:
        value, tangent = jvp(lin, padded, delta)
        return value[:1], tangent[:1]
    if not lin.routes:
        lin.routes += _proven(lin, batch, delta)
    while True:
        try:
            with MathAttention():
                route: Route = lin.routes[0]
                return route(lin, batch, delta)
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error) or len(lin.routes) == 1:
                raise
            lin.routes.pop(0)


def _proven(lin: Linearization, batch: Any, delta: Delta) -> list[Route]:
    """The routes that agree with gradients on two examples, the fastest first."""
    few = ends(batch, batch_size(batch))
    wide, few, exact = precise(lin, few)
    with everywhere(exact):
        probe = _random_like(wide, delta)
        v, expected, scale = _pulled(wide, few, probe)
        outputs = v[0].numel()
        slow: list[Route] = [_by_gradients, _by_differences]
        if outputs > _MOST_BACKWARDS:
            slow.reverse()
        proven: list[Route] = []
        for route in (_forward_mode, _double_backward, *slow):
            if route in slow and proven:
                break
            if _agrees(route, wide, few, probe, v, expected, scale, 1e-6 if exact else 2e-2):
                proven.append(route)
                if route in slow:
                    break
    if not proven:
        raise TPVError(
            "no way of computing Jδ agrees with the gradients of this model: an operation has a backward "
            "pass that cannot be differentiated, and the model does not run in float64. Use an estimator "
            "without Jδ, such as MonteCarlo, or give the operation a differentiable backward pass."
        )
    if proven[0] in slow:
        warnings.warn(
            "the backward pass of an operation of this model cannot be differentiated, so Jδ comes from "
            + (
                f"{outputs} backward passes for each example."
                if proven[0] is _by_gradients
                else "finite differences in float64."
            ),
            stacklevel=2,
        )
    return proven


def _random_like(lin: Linearization, delta: Delta) -> dict[str, Tensor]:
    probe: dict[str, Tensor] = {}
    for name in delta:
        w = lin.weights[name]
        generator = torch.Generator(w.device).manual_seed(len(probe))
        probe[name] = torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype)
    return probe


def _pulled(lin: Linearization, few: Any, probe: Delta) -> tuple[Tensor, float, float]:
    """v, ⟨Jᵀv, δ⟩, and how large it typically is."""
    with torch.enable_grad(), MathAttention():
        z = lin.differentiable(few)
        generator = torch.Generator(z.device).manual_seed(0)
        v = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        parameters = [lin.model.get_parameter(name) for name in probe]
        if not z.requires_grad:
            gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        else:
            gradients = torch.autograd.grad(z, parameters, v, allow_unused=True)
    unused = [name for name, g in zip(probe, gradients, strict=True) if g is None]
    refuse_hidden_use(lin, few, z.detach(), unused)
    terms = [g.double() * probe[n].double() for n, g in zip(probe, gradients, strict=True) if g is not None]
    scale = sum(t.square().sum().item() for t in terms) ** 0.5
    return v, sum(t.sum().item() for t in terms), scale


def _agrees(
    route: Route, lin: Linearization, few: Any, probe: Delta, v: Tensor, expected: float, scale: float,
    tolerance: float,
) -> bool:  # fmt: skip
    try:
        with MathAttention():
            tangent = route(lin, few, probe)[1].double()
    except (NotImplementedError, RuntimeError, TPVError) as error:
        if is_out_of_memory(error):
            raise
        return False
    got = (v.double() * tangent).sum().item()
    if route is _by_differences:
        tolerance = max(tolerance, 1e-5)
    return bool(abs(got - expected) <= tolerance * (scale + abs(expected) + tangent.norm().item()))


def _forward_mode(lin: Linearization, batch: Any, delta: Delta) -> tuple[Tensor, Tensor]:
    point = {name: lin.weights[name] for name in delta}
    with torch.no_grad():
        value, tangent = forward_mode_jvp(lambda w: lin.at(w, batch), (point,), (dict(delta),))[:2]
    return value, tangent


def _double_backward(lin: Linearization, batch: Any, delta: Delta) -> tuple[Tensor, Tensor]:
    """f and J δ, as the derivative of v ↦ ⟨Jᵀv, δ⟩."""
    with torch.enable_grad():
        w = {name: lin.weights[name].clone().requires_grad_() for name in delta}
        value = lin.at(w, batch)
        v = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, list(w.values()), v, create_graph=True, allow_unused=True)
        inner = sum(
            ((g * d).sum() for g, d in zip(pulled, delta.values(), strict=True) if g is not None), v.sum() * 0
        )
        (tangent,) = torch.autograd.grad(inner, v)
    return value.detach(), tangent.detach()


def _by_gradients(lin: Linearization, batch: Any, delta: Delta) -> tuple[Tensor, Tensor]:
    """f and ⟨∇f_k, δ⟩, one output of one example at a time."""
    n, values, tangents = batch_size(batch), [], []
    parameters = [lin.model.get_parameter(name) for name in delta]
    for i in range(n):
        with torch.enable_grad():
            z = lin.differentiable(narrow(batch, i, i + 1, n))
        rows = []
        for output in z.flatten():
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            terms = [
                (g.double() * d.double()).sum()
                for g, d in zip(gradients, delta.values(), strict=True)
                if g is not None
            ]
            rows.append(torch.stack(terms).sum() if terms else output.new_zeros(()).double())
        values.append(z.detach())
        tangents.append(torch.stack(rows).reshape(z.shape).to(z.dtype))
    return torch.cat(values), torch.cat(tangents)


@torch.no_grad()
def _by_differences(lin: Linearization, batch: Any, delta: Delta) -> tuple[Tensor, Tensor]:
    """f and (4 D(h) − D(2h)) / 3 with D(h) = (f(w + hδ) − f(w − hδ)) / 2h, in float64."""
    wide = in_dtype(lin, torch.float64)
    if wide is None:
        raise TPVError("the model does not run in float64.")
    wide_batch = cast(batch, torch.float64)
    h = 1e-4 * max(_norm(wide.weights[n] for n in delta), 1e-3) / max(_norm(delta.values()), 1e-30)

    def difference(step: float) -> Tensor:
        up, down = (
            wide.at({n: wide.weights[n] + s * d.double() for n, d in delta.items()}, wide_batch)
            for s in (step, -step)
        )
        return (up - down) / (2 * step)

    value = lin(batch)
    return value, ((4 * difference(h) - difference(2 * h)) / 3).to(value.dtype)


def _norm(values: Iterable[Tensor]) -> float:
    return math.sqrt(sum(value.double().square().sum().item() for value in values))
