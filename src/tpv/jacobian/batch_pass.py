"""One batch: its graph, its recorded calls, and each cotangent's way through them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpv.common.counters import signs
from tpv.common.errors import is_out_of_memory
from tpv.jacobian.backward import Arrivals, Call
from tpv.jacobian.fallback.local import LocalCall, NotRepeatedError
from tpv.jacobian.fallback.whole_model import (
    gradients_one_by_one,
    one_by_one,
    vectorised,
    vectorised_gradients,
)
from tpv.jacobian.formulas.base import LayerCall, Variance, gram_is_cheaper, tolerance
from tpv.jacobian.formulas.factors import squared_norm
from tpv.jacobian.formulas.registry import layer_call
from tpv.jacobian.routes.planner import Axes
from tpv.jacobian.routes.recorder import Graph, Recorded, expanded

if TYPE_CHECKING:
    from tpv.jacobian.sweep import Sweep

LOCAL = "local gradients"
WHOLE = "per-example gradients of the whole model"
ONE_BY_ONE = f"{WHOLE}, one by one"
Found = Callable[[], dict[str, Tensor]]


class BatchPass:
    """A forward pass over n examples; :meth:`squares` takes cotangents back through it.

    Each layer reduces its output gradient to numbers as soon as the backward pass brings it, so that
    gradients need not be kept; only calls that share a parameter or run again by themselves wait for the end.
    """

    def __init__(self, sweep: Sweep, batch: Any, outputs: Tensor, graph: Graph) -> None:
        self.outputs, self._sweep, self._batch, self._graph, self._n = (
            outputs,
            sweep,
            batch,
            graph,
            len(outputs),
        )
        self.unreached = {name for key, name in sweep.ids.items() if key not in graph.uses}
        self._calls: list[Call] = []
        self._proven = False
        by_module: dict[Any, list[Recorded]] = {}
        for recorded in graph.calls:
            by_module.setdefault(recorded.module, []).append(recorded)
        for key, name in sweep.ids.items():
            calls = [call for module in sweep.plan.owners[name] for call in by_module.get(module, [])]
            if name not in self.unreached and not graph.covered(key, calls):
                sweep.send_whole([name])
        for recorded in graph.calls:
            self._add(recorded)

    def _add(self, recorded: Recorded) -> None:
        sweep = self._sweep
        parameters = recorded.module.named_parameters(recurse=not recorded.known)
        names = {local: sweep.ids[id(p)] for local, p in parameters if id(p) in sweep.ids}
        names = {local: name for local, name in names.items() if recorded.module in sweep.plan.owners[name]}
        live = self._graph.live(recorded)
        shapes = [recorded.shapes[i] for i in live]
        axes = self._axes(sweep.plan.outputs.get(recorded.site), shapes)
        usable = not recorded.stale and len(axes) == len(live)
        layer = self._layer(recorded, dict(zip(live, axes, strict=True))) if usable else None
        if layer is None:
            sweep.send_whole(names.values())
            return
        planned = recorded.site in sweep.plan.outputs and not (
            sweep.newly_expanded and recorded.site in sweep.plan.expand
        )
        plain = (
            planned
            and not self._graph.reorders
            and all(shape[axis] == self._n for shape, axis in zip(shapes, axes, strict=True))
        )
        self._calls.append(Call(layer, names, [recorded.outputs[i] for i in live], shapes, axes, plain))

    def _layer(self, recorded: Recorded, outputs: dict[int, int]) -> LayerCall | None:
        site, n = recorded.site, self._n
        inputs = self._sweep.plan.inputs.get(site)
        if recorded.known:
            x = recorded.x
            if x is None:
                return None
            x = expanded(x, n) if site in self._sweep.plan.expand else x.movedim(outputs[0], 0)
            return layer_call(recorded.module, x, n, self._sweep.passes)
        counted = [] if inputs is None else [axis for axis in inputs if axis is not None]
        if inputs is None or self._axes(inputs, [t.shape for t in recorded.inputs]) != counted:
            return None
        assert recorded.attributes is not None
        checksum = torch.stack([recorded.checksums[i] for i in outputs]).sum(0)
        return LocalCall(
            recorded.module, recorded.arguments, inputs, outputs, n, checksum, recorded.attributes
        )

    def _axes(self, planned: Axes | None, shapes: list[torch.Size]) -> list[int]:
        """The axes that count examples, by default the first, of those tensors that have one of n · r
        rows.
        """
        axes = planned if planned is not None else (0,) * len(shapes)
        if len(axes) != len(shapes):
            return []
        counted = [(shape, axis) for shape, axis in zip(shapes, axes, strict=True) if axis is not None]
        return [axis for shape, axis in counted if axis < len(shape) and shape[axis] % self._n == 0]

    def _active(self, call: Call) -> dict[str, str]:
        """The parameters that this call accounts for."""
        return {local: name for local, name in call.names.items() if name not in self._sweep.whole}

    @property
    def scratch(self) -> int:
        """Most numbers per example that a layer writes out at a time."""
        using: dict[str, list[tuple[LayerCall, str]]] = {}
        for call in self._calls:
            for local, name in self._active(call).items():
                using.setdefault(name, []).append((call.layer, local))
        alone = [layer.scratch for parts in using.values() for layer, _ in parts]
        sweep = self._sweep
        dense = [
            n
            for n, p in using.items()
            if sweep.variances[n].rows is None or (len(p) > 1 and not self._factored(n, p))
        ]
        return max([*alone, *(sweep.lin.weights[n].numel() for n in dense)], default=0)

    def _factored(self, name: str, parts: list[tuple[LayerCall, str]]) -> bool:
        """Whether outer products are cheaper than the gradient of a parameter that several calls use."""
        if self._sweep.variances[name].rows is None or not all(
            layer.positions and local == "weight" for layer, local in parts
        ):
            return False
        rows, columns = self._sweep.lin.weights[name].shape
        return gram_is_cheaper(sum(layer.positions for layer, _ in parts), columns, rows, self._sweep.passes)

    def squares(self, v: Tensor, last: bool = False) -> Tensor:
        """(N, number of parameters) from cotangents v (N, K)."""
        sweep, v = self._sweep, v.reshape(self.outputs.shape).to(self.outputs)
        self._prove_rows()
        calls = [call for call in self._calls if self._active(call)]
        shared = _repeated([name for call in calls for name in self._active(call).values()])
        columns: dict[str, Tensor] = {}
        waiting: list[tuple[Call, Tensor]] = []

        def reduce(call: Call, g: Tensor) -> None:
            if isinstance(call.layer, LocalCall) or any(name in shared for name in call.names.values()):
                waiting.append((call, g))
            else:
                self._reduce(call, g, columns)

        self._backward(v, calls, reduce, retain=not last)
        for call, g in waiting:
            self._reduce(call, g, columns, skip=shared)
        for name in shared - sweep.whole.keys():
            parts = [(c.layer, local, g) for c, g in waiting for local, n in c.names.items() if n == name]
            factored = self._factored(name, [(layer, local) for layer, local, _ in parts])
            try:
                columns[name] = _square_of_sum(parts, sweep.variances[name], factored=factored)
            except NotRepeatedError:
                sweep.send_whole([name])
        if slow := [name for name in sweep.names if name in sweep.whole and name not in self.unreached]:
            columns |= self._whole(slow, v)
        nothing = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        return torch.stack([columns.get(name, nothing).double() for name in sweep.names], dim=1)

    def gradients(self, v: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """(N, *shape) of each of the parameters, from cotangents v (N, K)."""
        sweep, v = self._sweep, v.reshape(self.outputs.shape).to(self.outputs)
        self._prove_rows()
        calls = [call for call in self._calls if any(name in names for name in self._active(call).values())]
        found: dict[str, Tensor] = {}
        waiting: list[tuple[Call, Tensor]] = []

        def add(call: Call, g: Tensor) -> None:
            active = [k for k, name in self._active(call).items() if name in names]
            for local, gradient in (call.layer.gradients(g, active) if active else {}).items():
                name = call.names[local]
                found[name] = found[name] + gradient if name in found else gradient

        def take(call: Call, g: Tensor) -> None:
            if isinstance(call.layer, LocalCall):
                waiting.append((call, g))
            else:
                add(call, g)

        self._backward(v, calls, take, retain=True)
        for call, g in waiting:
            try:
                add(call, g)
            except NotRepeatedError:
                sweep.send_whole(call.names.values())
        if slow := [name for name in names if name in sweep.whole and name not in self.unreached]:
            found |= self._whole_gradients(slow, v)
        weights = sweep.lin.weights
        return {
            name: found.get(name, weights[name].new_zeros(1).expand(len(v), *weights[name].shape))
            for name in names
        }

    def _reduce(self, call: Call, g: Tensor, columns: dict[str, Tensor], skip: Iterable[str] = ()) -> None:
        variance = {
            k: self._sweep.variances[name] for k, name in self._active(call).items() if name not in skip
        }
        try:
            found = call.layer.squares(g, variance) if variance else {}
        except NotRepeatedError:
            self._sweep.send_whole(call.names.values())
            return
        columns |= {call.names[k]: square for k, square in found.items()}

    def _backward(
        self, v: Tensor, calls: list[Call], reduce: Callable[[Call, Tensor], None], *, retain: bool
    ) -> None:
        """Hand each call its output gradient the moment it is complete: on the way where the pass goes on
        below, else at its end.
        """
        if not calls:
            return
        arrivals = Arrivals(calls, lambda call, found: reduce(call, call.joined(found, self._n)))
        sites = [(call, position, edge) for call in calls for position, edge in enumerate(call.edges)]
        above = self._graph.above(frozenset(edge.node for _, _, edge in sites))
        on_the_way = [site for site in sites if site[2].node in above]
        at_the_end = [site for site in sites if site[2].node not in above]
        handles = [
            edge.node.register_prehook(functools.partial(arrivals.hooked, call, i, edge.output_nr))
            for call, i, edge in on_the_way
        ]
        try:
            found = torch.autograd.grad(
                self.outputs, [e for _, _, e in at_the_end], v, retain_graph=retain, allow_unused=True
            )
        finally:
            for handle in handles:
                handle.remove()
        for (call, position, _), g in zip(at_the_end, found, strict=True):
            arrivals.add(call, position, g)
        arrivals.hand_on_rest()

    def _prove_rows(self) -> None:
        """Once per batch, prove that the rows of calls belong to the examples they are counted for.

        Gradients are linear in v: scaling each example's cotangent must scale just its own rows. The
        cotangent is of random signs, so that no output can hide a call.
        """
        calls = [call for call in self._calls if self._active(call) and not call.plain]
        if self._proven or not calls or self._n == 1:
            return
        self._proven = True
        v = random_signs(self.outputs)
        scale = 1 + (torch.arange(len(v), device=v.device) * 0.618034) % 1
        once: dict[Call, Tensor] = {}
        again: dict[Call, Tensor] = {}
        self._backward(v, calls, once.__setitem__, retain=True)
        self._backward(
            scale.to(v).reshape(-1, *[1] * (v.ndim - 1)) * v, calls, again.__setitem__, retain=True
        )
        for call in once.keys() & again.keys():
            if not _rows_belong(once[call], again[call], scale):
                self._sweep.send_whole(call.names.values())

    def _whole_gradients(self, names: list[str], v: Tensor) -> dict[str, Tensor]:
        arguments = self._sweep.lin, names, self._batch, v
        return self._through_the_model(
            names, lambda: vectorised_gradients(*arguments), lambda: gradients_one_by_one(*arguments)
        )

    def _whole(self, names: list[str], v: Tensor) -> dict[str, Tensor]:
        arguments = self._sweep.lin, {name: self._sweep.variances[name] for name in names}, self._batch, v
        return self._through_the_model(names, lambda: vectorised(*arguments), lambda: one_by_one(*arguments))

    def _through_the_model(self, names: list[str], vectorised: Found, one_by_one: Found) -> dict[str, Tensor]:
        """By ``torch.func`` unless that refused these parameters before."""
        if not any(self._sweep.whole[name] == ONE_BY_ONE for name in names):
            try:
                return vectorised()
            except (
                Exception
            ) as error:  # torch.func refuses in many ways; the loop below either works or tells why
                if is_out_of_memory(error):
                    raise
        self._sweep.sent_one_by_one(names)
        return one_by_one()


def random_signs(outputs: Tensor) -> Tensor:
    """±1 of the shape of the outputs, always the same."""
    rows = torch.arange(len(outputs), device=outputs.device)
    return signs(0, rows, outputs[0].numel()).reshape(outputs.shape).to(outputs)


def _rows_belong(g: Tensor, scaled: Tensor, scale: Tensor) -> bool:
    expected = g.reshape(len(scale), -1) * scale.unsqueeze(1)
    gap = (scaled.reshape(len(scale), -1) - expected).abs().amax(1)
    return bool((gap <= tolerance(g.dtype) * expected.abs().amax(1) + torch.finfo(g.dtype).tiny).all())


def _square_of_sum(
    parts: list[tuple[LayerCall, str, Tensor]], variance: Variance, *, factored: bool
) -> Tensor:
    """(n,) squares of a parameter that several calls use, whose gradients add before squaring."""
    if factored and variance.rows is not None:
        return squared_norm([layer.factors(g).scaled(variance.rows) for layer, _, g in parts])
    gradients = (layer.gradients(g, [local])[local] for layer, local, g in parts)
    return variance.square(
        sum(gradients, start=torch.zeros((), device=parts[0][2].device, dtype=parts[0][2].dtype))
    )


def _repeated(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
