"""One batch: its outputs, its calls, and what cotangents give when they go back through them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import is_out_of_memory
from tpv.jacobian.backward import backward
from tpv.jacobian.calls import Call
from tpv.jacobian.fallback.local import NotRepeatedError
from tpv.jacobian.fallback.whole_model import one_by_one, vectorized
from tpv.jacobian.formulas.base import LayerCall
from tpv.jacobian.formulas.precision import widened
from tpv.jacobian.reducers import Part, Reducer
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.table import Demotion, Kind, RouteTable
from tpv.model.linearization import Linearization


class DemotedError(Exception):
    """Some routes failed while they were taken: the batch has to be run again by another table."""

    def __init__(self, demotions: Sequence[Demotion]) -> None:
        super().__init__("; ".join(f"{d.name}: {d.reason}" for d in demotions))
        self.demotions = demotions


@dataclass(frozen=True, eq=False)
class BatchPass:
    """A forward pass over n examples. :meth:`reduce` takes cotangents back through it.

    Each layer reduces its output gradient as soon as the backward pass brings it, so that gradients need not
    be kept; only calls that share a parameter or run their module again wait for the end.

    Attributes:
        lin, table, batch: the model, the routes, and the examples.
        outputs, graph: z (N, ...) and what leads to it.
        calls: those that account for parameters.
        unused: parameters that the outputs do not depend on.
    """

    lin: Linearization
    table: RouteTable
    batch: Any
    outputs: Tensor
    graph: Graph
    calls: Sequence[Call]
    unused: frozenset[str]

    @cached_property
    def uses(self) -> dict[str, list[Part]]:
        """Parameter → the calls that use it."""
        uses: dict[str, list[Part]] = {}
        for call in self.calls:
            for local, name in call.names.items():
                uses.setdefault(name, []).append((call.layer, local))
        return uses

    def output_gradients(self, v: Tensor, calls: Sequence[Call]) -> dict[Call, Tensor]:
        """The calls' output gradients for cotangents v like the outputs."""
        gradients: dict[Call, Tensor] = {}

        def receive(call: Call, g: Tensor) -> None:
            gradients[call] = widened(g)

        backward(self.outputs, self.graph, v, calls, receive, retain=True)
        return gradients

    def reduce(
        self, v: Tensor, reducer: Reducer, names: Collection[str], *, last: bool = False
    ) -> dict[str, Tensor]:
        """Parameter → reduced gradients (N, ...) of ⟨v, z⟩, from cotangents v (N, K); ``last`` frees the
        graph.

        Raises:
            DemotedError: if a module does not repeat what it computed, or ``torch.func`` refuses the model.
        """
        v = v.reshape(self.outputs.shape).to(self.outputs)
        shared = {name for name, parts in self.uses.items() if len(parts) > 1 and name in names}
        reduced, waiting = self._during_the_pass(v, reducer, names, shared, last=last)
        failed: list[Demotion] = []
        for call, g in waiting:
            unshared = {k: name for k, name in call.names.items() if name in names and name not in shared}
            try:
                with _own_precision(call.layer, g):
                    reduced |= reducer.of_call(call.layer, g, unshared) if unshared else {}
            except NotRepeatedError:
                failed += _not_repeated(call.names.values())
        for group in reducer.groups(shared):
            try:
                reduced |= _of_several_calls(group, waiting, reducer)
            except NotRepeatedError:
                failed += _not_repeated(group)
        if failed:
            raise DemotedError(failed)
        reduced |= self._through_the_model(v, reducer, [name for name in names if name not in self.unused])
        return {name: reduced[name] if name in reduced else reducer.zero(name, len(v)) for name in names}

    def _during_the_pass(
        self, v: Tensor, reducer: Reducer, names: Collection[str], shared: set[str], *, last: bool
    ) -> tuple[dict[str, Tensor], list[tuple[Call, Tensor]]]:
        """What can be reduced during the backward pass, and the calls that have to wait for its end."""
        reduced: dict[str, Tensor] = {}
        waiting: list[tuple[Call, Tensor]] = []

        def receive(call: Call, g: Tensor) -> None:
            if call.layer.reruns or any(name in shared for name in call.names.values()):
                waiting.append((call, g))
            else:
                asked = {local: name for local, name in call.names.items() if name in names}
                with _own_precision(call.layer, g):
                    reduced.update(reducer.of_call(call.layer, g, asked))

        calls = [call for call in self.calls if any(name in names for name in call.names.values())]
        backward(self.outputs, self.graph, v, calls, receive, retain=not last)
        return reduced, waiting

    def _through_the_model(self, v: Tensor, reducer: Reducer, names: Sequence[str]) -> dict[str, Tensor]:
        by_kind = self.table.whole_model(names)
        reduced: dict[str, Tensor] = {}
        if asked := by_kind[Kind.WHOLE_MODEL]:
            try:
                reduced |= vectorized(self.lin, asked, self.batch, v, reducer.of_gradient)
            except Exception as error:  # torch.func refuses in many ways
                if is_out_of_memory(error):
                    raise
                raise DemotedError([self._one_by_one(name) for name in asked]) from error
        if asked := by_kind[Kind.ONE_BY_ONE]:
            reduced |= one_by_one(self.lin, asked, self.batch, v, reducer.of_gradient)
        return reduced

    def _one_by_one(self, name: str) -> Demotion:
        reason = f"{self.table.routes[name].reason}; torch.func cannot trace the model"
        return Demotion(name, reason, Kind.ONE_BY_ONE)


def _of_several_calls(
    names: Collection[str], waiting: Sequence[tuple[Call, Tensor]], reducer: Reducer
) -> dict[str, Tensor]:
    """Of parameters whose gradients add up over calls before they are reduced."""
    reduced: dict[str, Tensor] = {}
    for name in names:
        parts = [(c.layer, k, g) for c, g in waiting for k, other in c.names.items() if other == name]
        if parts:
            with _own_precision(parts[0][0], parts[0][2]):
                value = reducer.of_factors(name, parts)
            reduced |= {} if value is None else {name: value}
    sums: dict[str, Tensor] = {}
    for call, g in waiting:
        asked = {k: name for k, name in call.names.items() if name in names and name not in reduced}
        with _own_precision(call.layer, g):
            gradients = call.layer.gradients(g, list(asked)) if asked else {}
        for local, gradient in gradients.items():
            name = asked[local]
            sums[name] = sums[name] + gradient if name in sums else gradient
    return reduced | {name: reducer.of_gradient(name, gradient) for name, gradient in sums.items()}


def _own_precision(layer: LayerCall, g: Tensor) -> AbstractContextManager[object]:
    """Formulas choose their precision by what they get; a module that runs again follows autocast."""
    kind = g.device.type
    if layer.reruns or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _not_repeated(names: Iterable[str]) -> list[Demotion]:
    reason = "its module computes something else when it runs again by itself"
    return [Demotion(name, reason) for name in names]
