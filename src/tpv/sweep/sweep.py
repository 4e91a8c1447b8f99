"""The cotangent sweep: one forward pass, then backward passes that stop at layer outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tpv._batches import batch_size, ends
from tpv._errors import TPVError
from tpv.linearization import Linearization
from tpv.sweep.layer import LayerCall, Variance, widened
from tpv.sweep.layers import layer_call
from tpv.sweep.per_example import one_by_one, vectorised
from tpv.sweep.recording import Coverage, Recorded, Recorder, coverage


class Squares(Protocol):
    """v (N, K) ↦ squares (N, number of parameters); ``last=True`` frees the graph on the way."""

    def __call__(self, v: Tensor, last: bool = False) -> Tensor: ...


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-2}
_CHECKS = 8


@dataclass
class Sweep:
    r"""Per-example squares :math:`\sum_{i \in p} c_i (J(x)^\top v)_i^2` of every parameter p, without batch weight gradients.

    Layers with a closed form turn (input, output gradient) into exact per-example numbers. Whatever
    they do not account for, by the autograd graph or by a comparison with single-example gradients on
    the first batches, goes through ``torch.func``; ``routes`` says which parameters and how, and ``unreached``
    which of them no output of any batch depended on.

    Args:
        lin: the model at w*.
        variance: c, per parameter, broadcastable to its shape.
        passes: how many cotangents each batch will see (what they share is worth more preparation).
    """

    lin: Linearization
    variance: Mapping[str, Tensor]
    passes: int = 1
    routes: dict[str, str] = field(default_factory=dict)
    unreached: set[str] | None = None
    _unverified: set[str] = field(init=False)
    _checks: int = 0
    _one_by_one: bool = False

    def __post_init__(self) -> None:
        self._ids = {id(p): n for n, p in self.lin.model.named_parameters() if n in self.variance}
        self.names = list(self.variance)
        self.variances = {n: Variance(c, self.lin.weights[n].ndim) for n, c in self.variance.items()}
        self._unverified = set(self.names)

    @contextmanager
    def linearized(self, batch: Any) -> Iterator[tuple[Tensor, Squares]]:
        """Outputs (N, ...) and the function from cotangents to per-example squares.

        Cost: one forward pass, then per call one backward pass to the layer outputs plus the layers'
        own products (0.6 to 0.8 of a forward+backward pass in all).
        """
        n = batch_size(batch)
        if self._unverified and self._checks < _CHECKS:
            self._verify(ends(batch, n))
        with self._recorded(batch) as pass_:
            yield pass_.outputs.detach(), pass_.squares

    @contextmanager
    def _recorded(self, batch: Any) -> Iterator[_Pass]:
        with Recorder(self.lin.model, self._ids) as recorder, torch.enable_grad():
            outputs = self.lin(batch)
            recorder.recording = False
            if not outputs.requires_grad:
                raise TPVError(
                    "the outputs do not depend on any perturbed parameter: the model runs under torch.no_grad() "
                    "or detaches its outputs, or params= selects parameters that it does not use."
                )
            graph = coverage(outputs, recorder.calls, self._ids)
            with torch.no_grad():
                yield _Pass(self, batch, outputs, graph)

    def _verify(self, few: Any) -> None:
        """Send to the slow route every parameter whose squares differ from plain single-example gradients.

        One that the examples do not move at all stays unverified, for the next batch to tell.
        """
        self._checks += 1
        with self._recorded(few) as pass_:
            generator = torch.Generator().manual_seed(0)
            v = torch.randint(0, 2, pass_.outputs.shape, generator=generator).mul(2).sub(1).to(pass_.outputs)
            mine = pass_.squares(v.flatten(1))
            self._refuse_hidden_use(few, pass_.outputs.detach(), sorted(pass_.unreached & self._unverified))
        tolerance = _TOLERANCE.get(v.dtype, 0.3)
        reference = one_by_one(self.lin, self.names, few, v)
        for column, name in enumerate(self.names):
            expected = self.variances[name].square(reference[name])
            off = (mine[:, column] - expected).abs() > tolerance * expected.abs() + 1e-9 * mine.sum(1)
            if off.any():
                self.routes.setdefault(name, "per-example gradients")
            if len(v) > 1 and (expected > 0).all():
                self._unverified.discard(name)

    def _refuse_hidden_use(self, few: Any, outputs: Tensor, names: list[str]) -> None:
        """Refuse parameters that move the outputs although autograd does not see it."""
        moved = self.lin.displaced(few, {name: 0.1 * (self.lin.weights[name].abs() + 0.1) for name in names}) if names else outputs
        if not torch.allclose(moved, outputs, rtol=1e-3, atol=1e-6):
            raise TPVError(
                f"the model uses {', '.join(names[:3])} under torch.no_grad() or detached, so that their effect has no gradient: "
                "freeze them with requires_grad_(False), or leave them out with params=."
            )

    def per_example(self, batch: Any, names: list[str], v: Tensor) -> dict[str, Tensor]:
        if not self._one_by_one:
            try:
                return vectorised(self.lin, names, batch, v)
            except Exception:  # torch.func refuses in many ways; the loop below either works or tells why
                self._one_by_one = True
        self.routes.update(dict.fromkeys(names, "per-example gradients, one by one"))
        return one_by_one(self.lin, names, batch, v)


class _Pass:
    """One batch: its graph, its recorded calls, and the parameters that need the slow route."""

    def __init__(self, sweep: Sweep, batch: Any, outputs: Tensor, graph: Coverage) -> None:
        self.sweep, self.batch, self.outputs, self.unreached = sweep, batch, outputs, graph.unreached
        self._calls: list[_Call] = []
        self._send_slow(graph.uncovered)
        for recorded in graph.calls:
            names = {local: sweep._ids[id(p)] for local, p in recorded.module._parameters.items() if id(p) in sweep._ids}
            layer = None if recorded.stale else layer_call(recorded.module, recorded.x, len(outputs), sweep.passes)
            if layer is None:
                self._send_slow(names.values())
            else:
                self._calls.append(_Call(recorded, layer, names, folded=len(recorded.x) != len(outputs)))
        sweep.unreached = graph.unreached if sweep.unreached is None else sweep.unreached & graph.unreached

    def _send_slow(self, names: Iterable[str]) -> None:
        for name in names:
            self.sweep.routes.setdefault(name, "per-example gradients")

    def squares(self, v: Tensor, last: bool = False) -> Tensor:
        """(N, number of parameters) from cotangents v (N, K)."""
        sweep, v = self.sweep, v.reshape(self.outputs.shape).to(self.outputs)
        self._check_folded(v)
        calls = [call for call in self._calls if call.fast(sweep.routes)]
        found = torch.autograd.grad(self.outputs, [c.recorded.edge for c in calls], v, retain_graph=not last) if calls else ()
        several = _repeated([name for call in calls for name in call.fast(sweep.routes).values()])
        columns: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        for call, g in zip(calls, found, strict=True):
            names, g = call.fast(sweep.routes), widened(g)
            alone = {k: sweep.variances[n] for k, n in names.items() if n not in several}
            shared = [k for k, n in names.items() if n in several]
            columns |= {names[k]: square for k, square in (call.layer.squares(g, alone) if alone else {}).items()}
            for k, gradient in (call.layer.gradients(g, shared) if shared else {}).items():
                pooled[names[k]] = pooled[names[k]] + gradient if names[k] in pooled else gradient
        if slow := [name for name in sweep.names if name in sweep.routes and name not in self.unreached]:
            pooled |= sweep.per_example(self.batch, slow, v)
        columns |= {name: sweep.variances[name].square(gradient) for name, gradient in pooled.items()}
        nothing = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        return torch.stack([columns.get(name, nothing).double() for name in sweep.names], dim=1)

    def _check_folded(self, v: Tensor) -> None:
        """Prove, once per batch, that rows folded into a layer's batch axis belong to the examples they are counted for.

        Gradients are linear in v: scaling each example's cotangent must scale just its own rows.
        """
        calls = [call for call in self._calls if call.folded and call.fast(self.sweep.routes)]
        for call in self._calls:
            call.folded = False
        if not calls:
            return
        scale = 1 + (torch.arange(len(v), device=v.device) * 0.618034) % 1
        edges = [call.recorded.edge for call in calls]
        scaled = scale.to(v).reshape(-1, *[1] * (v.ndim - 1)) * v
        once, again = (torch.autograd.grad(self.outputs, edges, u, retain_graph=True) for u in (v, scaled))
        for call, g, h in zip(calls, once, again, strict=True):
            expected = widened(g).reshape(len(v), -1) * scale.unsqueeze(1)
            gap = (widened(h).reshape(len(v), -1) - expected).abs().amax(1)
            if (gap > _TOLERANCE.get(v.dtype, 0.1) * expected.abs().amax(1) + torch.finfo(v.dtype).tiny).any():
                self._send_slow(call.names.values())


@dataclass
class _Call:
    """A recorded call with its layer's formula, and its parameters by local name."""

    recorded: Recorded
    layer: LayerCall
    names: dict[str, str]
    folded: bool

    def fast(self, routes: Mapping[str, str]) -> dict[str, str]:
        """The parameters that this formula is trusted with."""
        return {local: name for local, name in self.names.items() if name not in routes}


def _repeated(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
