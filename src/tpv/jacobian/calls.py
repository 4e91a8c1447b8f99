"""The calls of one batch that account for parameters, each with its layer's formula or its module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from tpv.jacobian.fallback.local import LocalCall
from tpv.jacobian.formulas.base import LayerCall
from tpv.jacobian.formulas.precision import widened
from tpv.jacobian.formulas.registry import layer_call
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.recorder import Recorded, Site, expanded
from tpv.jacobian.routes.table import Axes, Demotion, RouteTable


@dataclass(frozen=True, eq=False)
class Call:
    """A recorded call whose output gradient a backward pass brings.

    Attributes:
        layer: its formula, or the module to run again.
        names: local name → name, of the parameters that it accounts for.
        edges, shapes, axes: of the outputs that lead to the model's, with the axis that counts examples.
        ordered: whether it has one row for each example, as planned, in a graph in which rows keep their
            order.
    """

    layer: LayerCall
    names: dict[str, str]
    edges: list[GradientEdge]
    shapes: list[torch.Size]
    axes: list[int]
    ordered: bool

    def joined(self, gradients: Sequence[Tensor | None], n: int) -> Tensor:
        """A layer's output gradient; those of a module that runs again flattened and joined by example."""
        known = next(g for g in gradients if g is not None)
        shapes_and_axes = zip(gradients, self.shapes, self.axes, strict=True)
        rows = [
            (known.new_zeros(shape) if g is None else g).movedim(axis, 0)
            for g, shape, axis in shapes_and_axes
        ]
        if self.layer.reruns:
            return torch.cat([widened(g).reshape(n, -1) for g in rows], dim=1)
        return rows[0] if self.layer.half else widened(rows[0])


@dataclass(frozen=True)
class CallBuilder:
    """Makes the calls of one batch.

    Args:
        table: the routes.
        names: ``id(parameter)`` → name.
        graph: of the batch's outputs.
        n: number of examples.
        passes: how many cotangents the batch will see.
        unproven: calls whose expansion is new on this batch.
    """

    table: RouteTable
    names: Mapping[int, str]
    graph: Graph
    n: int
    passes: int
    unproven: frozenset[Site]
    _first_with_input: dict[Any, LayerCall] = field(default_factory=dict)

    def build(self) -> tuple[list[Call], list[Demotion]]:
        """All calls that account for parameters, and the demotions of those that cannot."""
        calls: list[Call] = []
        demotions: list[Demotion] = []
        for recorded in self.graph.calls:
            if names := self._accounted_for(recorded):
                call = None if recorded.modified_in_place else self._call(recorded, names)
                if call is None:
                    kind = type(recorded.module).__name__
                    reason = (
                        f"an input of {kind} is modified in place"
                        if recorded.modified_in_place
                        else f"the rows of {kind} do not count examples"
                    )
                    demotions += [Demotion(name, reason) for name in names.values()]
                else:
                    calls.append(call)
        return calls, demotions

    def _accounted_for(self, recorded: Recorded) -> dict[str, str]:
        parameters = recorded.module.named_parameters(recurse=not recorded.analytic)
        names = {local: self.names[id(p)] for local, p in parameters if id(p) in self.names}
        routes = self.table.routes
        return {local: name for local, name in names.items() if recorded.module in routes[name].modules}

    def _call(self, recorded: Recorded, names: dict[str, str]) -> Call | None:
        live = self.graph.live(recorded)
        shapes = [recorded.shapes[i] for i in live]
        axes = counting_axes(self.table.outputs.get(recorded.site), shapes, self.n)
        if len(axes) != len(live):
            return None
        layer = self._layer(recorded, dict(zip(live, axes, strict=True)))
        if layer is None:
            return None
        ordered = (
            recorded.site in self.table.outputs
            and recorded.site not in self.unproven
            and not self.graph.reorders
            and all(shape[axis] == self.n for shape, axis in zip(shapes, axes, strict=True))
        )
        return Call(layer, names, [recorded.outputs[i] for i in live], shapes, axes, ordered)

    def _layer(self, recorded: Recorded, outputs: dict[int, int]) -> LayerCall | None:
        if not recorded.analytic:
            return self._repeated(recorded, outputs)
        x = recorded.x
        if x is None:
            return None
        shared = recorded.site in self.table.expand
        axis = outputs[0]
        rows = expanded(x, self.n) if shared else x.movedim(axis, 0)
        layer = layer_call(recorded.module, rows, self.n, self.passes)
        if layer is not None:
            layer.share_input(self._first_with_input.setdefault((id(x), type(layer), shared, axis), layer))
        return layer

    def _repeated(self, recorded: Recorded, outputs: dict[int, int]) -> LayerCall | None:
        inputs = self.table.inputs.get(recorded.site)
        if inputs is None or recorded.attributes is None:
            return None
        planned = [axis for axis in inputs if axis is not None]
        if counting_axes(inputs, [t.shape for t in recorded.inputs], self.n) != planned:
            return None
        expected = torch.stack([recorded.checksums[i] for i in outputs]).sum(0)
        return LocalCall(
            recorded.module, recorded.arguments, inputs, outputs, self.n, expected, recorded.attributes
        )


def counting_axes(planned: Axes | None, shapes: list[torch.Size], n: int) -> list[int]:
    """The axes that count examples, by default the first, of those tensors that have one of n · r rows."""
    axes = planned if planned is not None else (0,) * len(shapes)
    if len(axes) != len(shapes):
        return []
    counted = [(shape, axis) for shape, axis in zip(shapes, axes, strict=True) if axis is not None]
    return [axis for shape, axis in counted if axis < len(shape) and shape[axis] % n == 0]
