"""The contract of the sweep on your own model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.counters import independent_signs
from tpv.common.format import table
from tpv.jacobian import Sweep
from tpv.jacobian.formulas.base import Variance
from tpv.jacobian.routes.table import Kind
from tpv.model.batches import batch_size, map_tensors, narrow
from tpv.model.checks import check_device, check_outputs
from tpv.model.checks import check_model as check_fixed_point
from tpv.model.linearization import Forward, Linearization
from tpv.model.outputs import OutputSpec, as_output
from tpv.model.twin import twin_of
from tpv.testing.float64 import Float64Everywhere

_TOLERANCE = 1e-9
_MOST_PASSES, _RANDOM = 4096, 8


@dataclass(frozen=True, repr=False)
class ModelCheck:
    """The result of :func:`check_model`.

    Attributes:
        model: the model's class.
        examples, outputs: their numbers, outputs for each example.
        cotangents: how many were compared for each example; all of them if as many as outputs.
        error: largest difference of a parameter's squared gradient from single-example autograd, relative to
            the largest one of that parameter or to 1e-3 of the largest total.
        routes: parameter → the layer with its analytic formula, or how else its gradients are computed.
        reasons: parameter → why it has no analytic formula, for those without one.
        sizes: parameter → number of weights.
        unused: parameters that no output depends on.
        cost: of one cotangent's sweep with its forward pass, in forward+backward passes over the same batch.
    """

    model: str
    examples: int
    outputs: int
    cotangents: int
    error: float
    routes: dict[str, str]
    reasons: dict[str, str]
    sizes: dict[str, int]
    unused: tuple[str, ...]
    cost: float

    def __str__(self) -> str:
        compared = (
            "all outputs" if self.cotangents == self.outputs else f"{self.cotangents} random cotangents"
        )
        by_route: dict[str, list[str]] = {}
        for name, route in self.routes.items():
            kind = Kind.LOCAL.value if route.startswith(Kind.LOCAL.value) else route
            by_route.setdefault("not used" if name in self.unused else kind, []).append(name)
        rows = [
            (
                route,
                str(len(names)),
                f"{sum(self.sizes[n] for n in names):,}",
                names[0],
                "" if route == "not used" else self.reasons.get(names[0], ""),
            )
            for route, names in by_route.items()
        ]
        columns = 5 if any(row[4] for row in rows) else 4
        return "\n".join(
            [
                f"{self.model}: {self.examples} examples × {self.outputs} outputs",
                f"agrees with single-example autograd to {self.error:.0e} (float64, {compared} of each "
                "example)",
                f"one probe for each example costs {self.cost:.2g} forward+backward passes",
                "",
                table(
                    ("route", "tensors", "weights", "such as", "why")[:columns],
                    [row[:columns] for row in rows],
                ),
            ]
        )

    __repr__ = __str__


def check_model(
    model: nn.Module, batch: Any, *, forward: Forward | None = None, output: OutputSpec = "logits"
) -> ModelCheck:
    r"""Check on a model that the sweep gives every parameter's per-example :math:`\sum_i (J^\top v)_i^2` as
    plain autograd does.

    The model runs in float64, and each single example through plain ``torch.autograd``: for every
    output where that takes at most 4096 backward passes, else for 8 random cotangents. Prints the result.

    Args:
        model: in evaluation mode.
        batch: a few examples that differ, in the form that :func:`tpv.estimate` takes batches.
        forward, output: as in :func:`tpv.estimate`.

    Returns:
        The agreement, the route of each parameter, and the cost of a probe.

    Raises:
        AssertionError: if a parameter differs by more than 1e-9, naming it.
        TPVError: as :func:`tpv.estimate`.

    Cost: one backward pass for each example and output, and as many sweeps as outputs.

    Example:
        >>> import torch, tpv.testing
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).eval()
        >>> check = tpv.testing.check_model(model, torch.randn(5, 4))  # doctest: +ELLIPSIS
        Sequential: 5 examples × 3 outputs
        agrees with single-example autograd to ...
        >>> set(check.routes.values())
        {'Linear'}
    """
    check_fixed_point(model)
    with twin_of(model, forward) as (twin, remapped), Float64Everywhere():
        batch = map_tensors(batch, lambda t: t.double() if t.is_floating_point() else t)
        lin = Linearization(twin.double(), remapped, as_output(output))
        if forward is None:
            check_device(twin, batch)
        outputs = check_outputs(lin, batch)[0].numel()
        comparison = _compared(lin, batch, outputs)
    print(comparison)
    return comparison


def _compared(lin: Linearization, batch: Any, outputs: int) -> ModelCheck:
    n, names = batch_size(batch), list(lin.weights)
    cotangents = _cotangents(n, outputs)
    sweep = Sweep(
        lin, {name: torch.ones((), dtype=torch.float64) for name in names}, passes=cotangents.shape[1]
    )
    reference = _reference(lin, names, batch, cotangents)
    with sweep.linearized(batch) as (z, squares):
        mine = torch.stack([squares(v.to(z)) for v in cotangents.unbind(1)], dim=1).cpu()
    floor = 1e-3 * reference.sum(2).max()
    errors = ((mine - reference).abs().amax((0, 1)) / reference.amax((0, 1)).clamp(min=floor)).tolist()
    worst = max(range(len(names)), key=lambda i: errors[i])
    assert errors[worst] < _TOLERANCE, (
        f"the squared gradient of {names[worst]!r} ({sweep.table.routes[names[worst]]}) differs by "
        f"{errors[worst]:.1e} from plain autograd: "
        "please report this model"
    )
    return ModelCheck(
        model=type(lin.model).__name__,
        examples=n,
        outputs=outputs,
        cotangents=cotangents.shape[1],
        error=errors[worst],
        routes={name: str(route) for name, route in sweep.table.routes.items()},
        reasons={name: route.reason for name, route in sweep.table.slow.items()},
        sizes={name: lin.weights[name].numel() for name in names},
        unused=tuple(sorted(sweep.unused or ())),
        cost=_cost(lin, names, batch, cotangents[:, 0]),
    )


def _cotangents(n: int, outputs: int) -> Tensor:
    """(n, R, K): the unit vectors, or a few random signs where they are too many."""
    if n * outputs <= _MOST_PASSES:
        return torch.eye(outputs, dtype=torch.float64).expand(n, -1, -1)
    return torch.stack(list(independent_signs(0, torch.arange(n), _RANDOM, outputs)), 1).double()


def _reference(lin: Linearization, names: list[str], batch: Any, cotangents: Tensor) -> Tensor:
    """(n, R, number of parameters) squares by one backward pass each, of single examples."""
    parameters = [lin.model.get_parameter(name) for name in names]
    one, n = Variance(torch.ones(()), 0), len(cotangents)
    rows = []
    for i in range(n):
        with torch.enable_grad():
            z = lin.differentiable(narrow(batch, i, i + 1, n))[0]
        for v in cotangents[i].to(z):
            gradients = torch.autograd.grad(
                z, parameters, v.reshape(z.shape), retain_graph=True, allow_unused=True
            )
            rows.append(
                torch.stack(
                    [
                        torch.zeros((), dtype=torch.float64) if g is None else one.square(g[None])[0].cpu()
                        for g in gradients
                    ]
                )
            )
    return torch.stack(rows).reshape(n, -1, len(names))


def _cost(lin: Linearization, names: list[str], batch: Any, v: Tensor) -> float:
    parameters = [lin.model.get_parameter(name) for name in names]
    sweep = Sweep(lin, {name: torch.ones((), dtype=torch.float64) for name in names})

    def plain() -> None:
        with torch.enable_grad():
            z = lin(batch)
        torch.autograd.grad(z, parameters, v.reshape(z.shape).to(z), allow_unused=True)

    def swept() -> None:
        with sweep.linearized(batch) as (z, squares):
            squares(v.to(z), last=True)

    sweep.prepare(batch)
    return min(map(_seconds, [swept] * 3)) / min(map(_seconds, [plain] * 3))


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
