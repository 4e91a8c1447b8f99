"""The cotangent sweep: one forward pass, then backward passes that stop at layer outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.common.reads import numbers
from tpv.jacobian.batch_pass import BatchPass, DemotedError
from tpv.jacobian.calls import Call, CallBuilder
from tpv.jacobian.fallback.whole_model import one_by_one
from tpv.jacobian.reducers import Gradients, Reducer, Squares
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.planner import Planner
from tpv.jacobian.routes.recorder import Recorded, Recorder, Site
from tpv.jacobian.routes.survey import Survey
from tpv.jacobian.routes.table import NOT_EXPANDABLE, Demotion, Kind, RouteTable
from tpv.jacobian.routes.verify import (
    ExpansionProof,
    differing,
    misplaced_rows,
    random_signs,
    uncovered,
)
from tpv.model.batches import batch_size, ends
from tpv.model.hidden import refuse_hidden_use
from tpv.model.linearization import Linearization

_CHECKS = 8


class SquaresOf(Protocol):
    """v (N, K) ↦ squares (N, number of parameters); ``last=True`` frees the graph during the pass."""

    def __call__(self, v: Tensor, last: bool = False) -> Tensor: ...


GradientsOf = Callable[[Tensor, Collection[str]], dict[str, Tensor]]
_Reduced = Callable[[Tensor, Collection[str], bool], dict[str, Tensor]]


@dataclass
class _Unverified:
    """Parameters not yet compared with single-example gradients, and how many batches were tried."""

    names: set[str]
    checks: int = 0

    @property
    def due(self) -> bool:
        return bool(self.names) and self.checks < _CHECKS


class Sweep:
    r"""Per-example squares :math:`\sum_{i \in p} c_i (J(x)^\top v)_i^2` of every parameter p, or the
    gradients :math:`J(x)^\top v` themselves, without batch weight gradients.

    Layers with an analytic formula turn (input, output gradient) into exact per-example numbers; any other
    module that holds parameters runs again by itself under ``torch.func``. Parameters that the calls of
    modules do not account for, by the autograd graph or by a comparison with single-example gradients on the
    first batches, fall back to the whole model.

    Args:
        lin: the model at w*.
        variance: c, per parameter, broadcastable to its shape.
        passes: how many cotangents each batch will see (what they share is worth more preparation).

    Attributes:
        names: of the parameters.
        table: the route of each parameter, with its reason; ``print`` it.
        unused: parameters that no output of any batch has depended on; None before the first batch.
    """

    def __init__(self, lin: Linearization, variance: Mapping[str, Tensor], passes: int = 1) -> None:
        self.lin, self.names, self.table = lin, list(variance), RouteTable()
        self.unused: frozenset[str] | None = None
        self._passes = passes
        self._scratch: int | None = None
        self._ids = {id(p): name for name, p in lin.model.named_parameters() if name in variance}
        self._planner = Planner(lin, self._ids)
        self._expansion = ExpansionProof(lin)
        self._squares = Squares(variance, lin.weights, passes)
        self._gradients = Gradients(self._squares, lin.weights)
        self._restart_checks()

    @contextmanager
    def linearized(self, batch: Any) -> Iterator[tuple[Tensor, SquaresOf]]:
        """Outputs (N, ...) and the function from cotangents to per-example squares.

        Cost: one forward pass, then per call one backward pass to the layer outputs plus the layers'
        own products (0.6 to 0.8 of a forward+backward pass in all); two backward passes more where rows may
        have changed places; and before the first batches, passes over two examples to plan and verify the
        routes.
        """
        with self._reduced(batch, self._squares) as (outputs, reduce):

            def squares(v: Tensor, last: bool = False) -> Tensor:
                by_name = reduce(v, self.names, last)
                return torch.stack([by_name[name].double() for name in self.names], dim=1)

            yield outputs, squares

    @contextmanager
    def jacobian(self, batch: Any) -> Iterator[tuple[Tensor, GradientsOf]]:
        """Outputs (N, ...) and the function from cotangents v (N, K) and names to per-example gradients (N,
        *shape).

        Cost: one forward pass, then per call one backward pass to the outputs of the layers that own these
        parameters.
        """
        with self._reduced(batch, self._gradients) as (outputs, reduce):
            yield outputs, lambda v, names: reduce(v, names, False)

    def scratch(self, batch: Any) -> int:
        """Most numbers per example that any layer writes out at a time, as the first batch shows it."""
        if self._scratch is None:
            padded = self.lin.padded(batch)
            self._scratch = self._squares.scratch(self._begin(ends(padded, batch_size(padded))).uses)
        return self._scratch

    def prepare(self, batch: Any) -> None:
        """Plan the routes with the batch's first and last example, and compare their squares with those of
        single-example gradients.
        """
        self._prepare(self.lin.padded(batch), self._squares)

    @contextmanager
    def _reduced(self, batch: Any, reducer: Reducer) -> Iterator[tuple[Tensor, _Reduced]]:
        """Outputs, and the function from (cotangents, names, whether they are the last) to reduced gradients.

        A failed proof runs the batch again by another table. A single example may be padded to two.
        """
        padded, n = self.lin.padded(batch), batch_size(batch)
        self._prepare(padded, reducer)
        with torch.no_grad():
            attempt = self._begin(padded)

            def reduce(v: Tensor, names: Collection[str], last: bool) -> dict[str, Tensor]:
                nonlocal attempt
                if len(v) < len(attempt.outputs):
                    v = torch.cat([v, v.new_zeros(len(attempt.outputs) - len(v), *v.shape[1:])])
                while True:
                    try:
                        reduced = attempt.reduce(v, reducer, names, last=last)
                        return {name: value[:n] for name, value in reduced.items()}
                    except DemotedError as error:
                        self.table = self.table.demoted(error.demotions)
                    attempt = self._begin(padded)

            yield attempt.outputs[:n].detach(), reduce

    @torch.no_grad()
    def _begin(self, batch: Any, survey: Survey | None = None) -> BatchPass:
        """The batch's forward pass, or the one that a survey has made, under a table for which coverage and
        the order of rows are proven.
        """
        while True:
            outputs, recorded, unproven = self._forward(batch, survey)
            survey = None
            graph = Graph(outputs, recorded)
            unused = frozenset(name for key, name in self._ids.items() if key not in graph.uses)
            self.unused = unused if self.unused is None else self.unused & unused
            builder = CallBuilder(self.table, self._ids, graph, len(outputs), self._passes, unproven)
            calls, demotions = builder.build()
            demotions += uncovered(self.table, graph, self._ids)
            attempt = BatchPass(self.lin, self.table, batch, outputs, graph, calls, unused)
            demotions = demotions or _out_of_order(attempt)
            if not demotions:
                return attempt
            self.table = self.table.demoted(demotions)

    def _forward(
        self, batch: Any, survey: Survey | None = None
    ) -> tuple[Tensor, list[Recorded], frozenset[Site]]:
        """Outputs, recorded calls, and those with a new expansion. Where giving shared outputs an axis of
        examples changes what the model computes, the table goes on without it.
        """
        table = self.table
        outputs, calls = self._recorded(batch) if survey is None else (survey.outputs, survey.calls)
        unproven = None
        if outputs is not None:
            unproven = self._expansion.unproven(batch, outputs, calls, table.expand)
        if outputs is None or unproven is None:
            self.table = table.without_expansion(NOT_EXPANDABLE)
            return self._forward(batch)
        if not outputs.requires_grad:
            raise TPVError(
                "the outputs do not depend on any perturbed parameter: the model runs under torch.no_grad() "
                "or detaches its outputs, or params= selects parameters that it does not use."
            )
        return outputs, calls, unproven

    def _recorded(self, batch: Any) -> tuple[Tensor | None, list[Recorded]]:
        """Outputs and calls; no outputs where the model refuses expanded ones."""
        table = self.table
        recorder = Recorder(table.modules, batch_size(batch), self._planner.analytic, table.expand)
        with recorder, torch.enable_grad():
            try:
                return self.lin(batch), recorder.calls
            except Exception as error:
                if not table.expand or is_out_of_memory(error):
                    raise
                return None, recorder.calls

    def _restart_checks(self) -> None:
        reducers: tuple[Reducer, ...] = self._squares, self._gradients
        self._unverified = {reducer: _Unverified(set(self.names)) for reducer in reducers}

    def _prepare(self, batch: Any, reducer: Reducer) -> None:
        unplanned = self.table.examples < min(2, batch_size(batch))
        if not unplanned and not self._unverified[reducer].due:
            return
        few, survey = ends(batch, batch_size(batch)), None
        with self.lin.raw():
            if unplanned:
                self.table, survey = self._planner.plan(few, self.table.demotions)
                self._restart_checks()
            if self._unverified[reducer].due:
                self._verify(few, reducer, survey)

    @torch.no_grad()
    def _verify(self, few: Any, reducer: Reducer, survey: Survey | None) -> None:
        """Demote every route that differs from plain single-example gradients, until all agree.

        A parameter that these examples do not depend on stays unverified, for the next batch to show.
        """
        unverified = self._unverified[reducer]
        unverified.checks += batch_size(few) > 1
        expected: dict[str, Tensor] = {}
        while True:
            attempt = self._begin(few, survey)
            survey = None
            v = random_signs(attempt.outputs)
            try:
                values = attempt.reduce(v, reducer, self.names)
            except DemotedError as error:
                self.table = self.table.demoted(error.demotions)
                continue
            hidden = sorted(attempt.unused & unverified.names)
            refuse_hidden_use(self.lin, few, attempt.outputs.detach(), hidden)
            expected = expected or one_by_one(self.lin, self.names, few, v, reducer.of_gradient)
            routes = self.table.routes
            wrong = [
                name for name in differing(values, expected, reducer.size, v.dtype) if routes[name].modules
            ]
            if not wrong:
                break
            reason = "differs from single-example gradients"
            demotions = tuple(Demotion(name, reason, Kind.LOCAL, routes[name].modules) for name in wrong)
            self.table, survey = self._planner.plan(few, self.table.demotions + demotions)
        if self._scratch is None:
            self._scratch = self._squares.scratch(attempt.uses)
        if len(v) > 1:
            seen = numbers([(reducer.size(name, expected[name]) > 0).all() for name in self.names])
            unverified.names -= {name for name, positive in zip(self.names, seen, strict=True) if positive}


def _out_of_order(attempt: BatchPass) -> list[Demotion]:
    """Of the parameters of calls whose rows do not belong to the examples they are counted for."""
    doubtful: list[Call] = [call for call in attempt.calls if not call.ordered]
    if not doubtful or len(attempt.outputs) == 1:
        return []
    misplaced = misplaced_rows(attempt.outputs, lambda v: attempt.output_gradients(v, doubtful))
    reason = "the rows of its layer do not belong to the examples in order"
    return [Demotion(name, reason) for call in misplaced for name in call.names.values()]
