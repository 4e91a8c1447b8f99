"""Proofs of a route table: each returns what fails, as data; the sweep makes a new table from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tpv.common.counters import signs
from tpv.common.reads import numbers
from tpv.jacobian.formulas.base import tolerance
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.recorder import Recorded, Site
from tpv.jacobian.routes.table import Demotion, RouteTable
from tpv.model.linearization import Linearization

K = TypeVar("K", bound=Hashable)


def uncovered(table: RouteTable, graph: Graph, names: Mapping[int, str]) -> list[Demotion]:
    """Parameters (``id`` → name) with a use in the graph outside of the calls that their route relies on."""
    calls: dict[nn.Module, list[Recorded]] = {}
    for recorded in graph.calls:
        calls.setdefault(recorded.module, []).append(recorded)
    demotions = []
    for key, name in names.items():
        modules = table.routes[name].modules
        relied_on = [call for module in modules for call in calls.get(module, [])]
        gap = graph.coverage_gap(key, relied_on) if modules and key in graph.uses else ""
        demotions += [Demotion(name, gap)] if gap else []
    return demotions


def misplaced_rows(outputs: Tensor, output_gradients: Callable[[Tensor], dict[K, Tensor]]) -> list[K]:
    """Calls with rows that do not belong to the examples they are counted for.

    Gradients are linear in v: scaling each example's cotangent must scale just its own rows. The cotangent is
    of random signs, so that no output can hide a call. Cost: two backward passes.

    Args:
        outputs: of the model, (N, ...).
        output_gradients: cotangents like the outputs ↦ call → output gradient.
    """
    v = random_signs(outputs)
    scale = 1 + (torch.arange(len(v), device=v.device) * 0.618034) % 1
    plain = output_gradients(v)
    scaled = output_gradients(scale.to(v).reshape(-1, *[1] * (v.ndim - 1)) * v)
    calls = list(plain.keys() & scaled.keys())
    flags = numbers([_rows_scale(plain[call], scaled[call], scale) for call in calls])
    return [call for call, in_order in zip(calls, flags, strict=True) if not in_order]


def _rows_scale(g: Tensor, scaled: Tensor, scale: Tensor) -> Tensor:
    expected = g.reshape(len(scale), -1) * scale.unsqueeze(1)
    gap = (scaled.reshape(len(scale), -1) - expected).abs().amax(1)
    return (gap <= tolerance(g.dtype) * expected.abs().amax(1) + torch.finfo(g.dtype).tiny).all()


def differing(
    values: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    size: Callable[[str, Tensor], Tensor],
    dtype: torch.dtype,
) -> list[str]:
    """Parameters whose reduced gradients (n, ...) are not the expected ones.

    Args:
        values, expected: parameter → reduced gradients.
        size: (parameter, reduced gradients) ↦ their weighted squares (n,).
        dtype: of the outputs, which sets the tolerance.
    """
    sizes = {name: size(name, value).double() for name, value in values.items()}
    total = torch.stack(list(sizes.values())).sum(0)
    flags = []
    for name, value in values.items():
        reference = size(name, expected[name]).double()
        gap = (sizes[name] - reference).abs()
        gap = gap.maximum(size(name, value - expected[name].to(value)).abs())
        flags.append((gap > tolerance(dtype) * reference.abs() + 1e-9 * total).any())
    return [name for name, differs in zip(values, numbers(flags), strict=True) if differs]


class ExpansionProof:
    """Whether giving shared outputs an axis of examples leaves the model's outputs as they are: asked
    whenever the shared inputs are new, for examples of a new shape, for the first batch of more than one, and
    for batches as large as an axis of what is expanded, where the two could be mistaken.
    """

    def __init__(self, lin: Linearization) -> None:
        self._lin = lin
        self._harmless: set[Any] = set()

    @torch.no_grad()
    def unproven(
        self, batch: Any, outputs: Tensor, calls: Iterable[Recorded], expand: frozenset[Site]
    ) -> frozenset[Site] | None:
        """The expanded calls that this batch shows for the first time; None where they change the outputs.

        Cost: a forward pass where there are any.
        """
        shared = [call for call in calls if call.site in expand]
        inputs = [t for call in shared for t in call.inputs]
        sums = numbers([t.double().sum() for t in inputs])
        n, shapes = len(outputs), [shape[1:] for call in shared for shape in call.shapes]
        size = n if any(n in shape for shape in shapes) else min(n, 2)
        key = (size, outputs.shape[1:], tuple(t.shape for t in inputs), tuple(sums), tuple(shapes))
        if not shared or key in self._harmless:
            return frozenset()
        plain = self._lin(batch)
        if plain.shape != outputs.shape or not torch.allclose(
            plain, outputs, rtol=tolerance(plain.dtype) / 10, atol=1e-5
        ):
            return None
        self._harmless.add(key)
        return frozenset(call.site for call in shared)


def random_signs(outputs: Tensor) -> Tensor:
    """±1 of the shape of the outputs, always the same."""
    rows = torch.arange(len(outputs), device=outputs.device)
    return signs(0, rows, outputs[0].numel()).reshape(outputs.shape).to(outputs)
