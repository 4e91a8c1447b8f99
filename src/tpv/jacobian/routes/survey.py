"""What two examples show about the calls of a model's modules: which axes count examples, what is shared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import is_out_of_memory
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.recorder import Recorded, Recorder, Site
from tpv.jacobian.routes.table import Axes
from tpv.model.batches import batch_size, narrow
from tpv.model.linearization import Linearization


class Survey:
    """All calls in a forward pass over one or two examples, compared with one over the first of them.

    Args:
        lin: the model at w*.
        modules: whose calls are recorded.
        analytic: those with an analytic formula.
        few: one or two examples.
        expand: calls whose outputs are given an axis of examples.

    Attributes:
        n: number of examples.
        outputs, calls: of the pass over all of them.
        input_axes, output_axes: ``inputs`` and ``outputs`` of
            :class:`~tpv.jacobian.routes.table.RouteTable`.
    """

    def __init__(
        self,
        lin: Linearization,
        modules: Sequence[nn.Module],
        analytic: Collection[nn.Module],
        few: Any,
        expand: frozenset[Site],
    ) -> None:
        self._lin, self._few, self._modules, self._analytic = lin, few, modules, analytic
        self.n = batch_size(few)
        self.outputs, self.calls = self._recorded(few, self.n, expand)
        calls = self.calls
        self._graph = Graph(self.outputs, calls)
        self._by_site = {call.site: call for call in self._graph.calls}
        self._calls: dict[nn.Module, list[Recorded]] = {}
        for call in self._graph.calls:
            self._calls.setdefault(call.module, []).append(call)
        single = calls if self.n == 1 else self._recorded(narrow(few, 0, 1, self.n), 1, expand)[1]
        self._single = {call.site: call for call in single}
        self.input_axes: dict[Site, Axes] = self._all_axes(_input_shapes)
        self.output_axes: dict[Site, Axes] = self._all_axes(self._live_shapes)

    def objection(self, key: int, modules: tuple[nn.Module, ...]) -> str:
        """Why calls of these modules do not account for a parameter (by id); "" if they do."""
        calls = [call for module in modules for call in self._calls.get(module, [])]
        objections = filter(None, map(self._call_objection, calls))
        return next(objections, "") or self._graph.coverage_gap(key, calls)

    def _call_objection(self, call: Recorded) -> str:
        kind = type(call.module).__name__
        if call.analytic:
            usable = call.x is not None and len(call.shapes) == 1
            return "" if usable else f"{kind} is called without a tensor, or returns several"
        if call.site not in self.input_axes or call.site not in self.output_axes:
            return f"the rows of {kind} do not count examples"
        return "" if call.repeatable else f"the arguments of {kind} cannot be used again"

    def shared(self, modules: tuple[nn.Module, ...]) -> set[Site]:
        """The modules' calls with outputs that all examples share."""
        return {
            c.site
            for m in modules
            for c in self._calls.get(m, [])
            if None in self.output_axes.get(c.site, ())
        }

    def _live_shapes(self, call: Recorded) -> list[torch.Size]:
        """Of the outputs that matter; of those in the same places for a call over a single example."""
        live = self._graph.live(self._by_site[call.site])
        return [call.shapes[i] for i in live if i < len(call.shapes)]

    def _all_axes(self, shapes: Callable[[Recorded], list[torch.Size]]) -> dict[Site, Axes]:
        both = {call.site: self._axes(call, shapes) for call in self._graph.calls}
        return {site: axes for site, axes in both.items() if axes is not None}

    def _axes(self, call: Recorded, shapes: Callable[[Recorded], list[torch.Size]]) -> Axes | None:
        """The axes that are n times as long as for a single example, None where the shape is the same; None
        in all if shapes differ otherwise.
        """
        single = self._single.get(call.site)
        if single is None or len(shapes(single)) != len(shapes(call)):
            return None
        axes: list[int | None] = []
        for shape, one in zip(shapes(call), shapes(single), strict=True):
            if self.n == 1:
                axes.append(0 if shape else None)
            elif shape == one:
                axes.append(None)
            else:
                longer = [i for i, (a, b) in enumerate(zip(shape, one, strict=False)) if a != b]
                if len(shape) != len(one) or len(longer) != 1 or shape[longer[0]] != self.n * one[longer[0]]:
                    return None
                axes.append(longer[0])
        return tuple(axes)

    def _recorded(self, few: Any, n: int, expand: frozenset[Site]) -> tuple[Tensor, list[Recorded]]:
        with Recorder(self._modules, n, self._analytic, expand) as recorder, torch.enable_grad():
            return self._lin(few), recorder.calls

    def survives(self, expand: frozenset[Site]) -> bool:
        """Whether the model computes the same with these outputs expanded."""
        try:
            outputs, _ = self._recorded(self._few, self.n, expand)
        except Exception as error:  # a model may do anything with a tensor of another shape
            if is_out_of_memory(error):
                raise
            return False
        return outputs.shape == self.outputs.shape and torch.allclose(
            outputs, self.outputs, rtol=1e-4, atol=1e-6
        )


def _input_shapes(call: Recorded) -> list[torch.Size]:
    return [t.shape for t in call.inputs]
