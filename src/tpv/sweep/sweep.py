"""The cotangent sweep: one forward pass, then backward passes that stop at layer outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tpv._batches import batch_size, ends
from tpv._errors import TPVError
from tpv.linearization import Linearization
from tpv.sweep.layer import LayerCall, Variance
from tpv.sweep.layers import layer_call
from tpv.sweep.per_example import one_by_one, vectorised
from tpv.sweep.recording import Coverage, Recorded, Recorder, coverage


class Squares(Protocol):
    """v (N, K) ↦ squares (N, number of parameters); ``last=True`` frees the graph on the way."""

    def __call__(self, v: Tensor, last: bool = False) -> Tensor: ...


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-2}


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
    _verified: int = 0
    _one_by_one: bool = False

    def __post_init__(self) -> None:
        self._ids = {id(p): n for n, p in self.lin.model.named_parameters() if n in self.variance}
        self.names = list(self.variance)
        self.variances = {n: Variance(c, self.lin.weights[n].ndim) for n, c in self.variance.items()}

    @contextmanager
    def linearized(self, batch: Any) -> Iterator[tuple[Tensor, Squares]]:
        """Outputs (N, ...) and the function from cotangents to per-example squares.

        Cost: one forward pass, then per call one backward pass to the layer outputs plus the layers'
        own products (0.6 to 0.8 of a forward+backward pass in all).
        """
        n = batch_size(batch)
        if self._verified < min(n, 2):
            self._verified = min(n, 2)
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
        """Send to the slow route every parameter whose squares differ from plain single-example gradients."""
        with self._recorded(few) as pass_:
            generator = torch.Generator().manual_seed(0)
            v = torch.randint(0, 2, pass_.outputs.shape, generator=generator).mul(2).sub(1).to(pass_.outputs)
            mine = pass_.squares(v.flatten(1))
        tolerance = _TOLERANCE.get(v.dtype, 0.3)
        reference = one_by_one(self.lin, self.names, few, v)
        for column, name in enumerate(self.names):
            expected = self.variances[name].square(reference[name])
            off = (mine[:, column] - expected).abs() > tolerance * expected.abs() + 1e-9 * mine.sum(1)
            if off.any():
                self.routes.setdefault(name, "per-example gradients")

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
        self.sweep, self.batch, self.outputs = sweep, batch, outputs
        n = len(outputs)
        prepared = [(call, layer_call(call.module, call.x, n, sweep.passes)) for call in graph.calls if not call.stale]
        self._calls: list[tuple[Recorded, LayerCall, dict[str, str]]] = []
        slow = set(graph.uncovered) | {name for call, layer in prepared if layer is None for name in self._locals(call).values()}
        self._calls = [(call, layer, self._locals(call)) for call, layer in prepared if layer is not None]
        for name in slow:
            sweep.routes.setdefault(name, "per-example gradients")
        self._unreached = graph.unreached
        sweep.unreached = graph.unreached if sweep.unreached is None else sweep.unreached & graph.unreached

    def _locals(self, call: Recorded) -> dict[str, str]:
        """Local parameter name → global name, of the perturbed parameters of a call's module."""
        ids = self.sweep._ids
        return {local: ids[id(p)] for local, p in call.module._parameters.items() if id(p) in ids}

    def squares(self, v: Tensor, last: bool = False) -> Tensor:
        """(N, number of parameters) from cotangents v (N, K)."""
        sweep, v = self.sweep, v.reshape(self.outputs.shape).to(self.outputs)
        columns: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        wanted = [(c, layer, {k: n for k, n in names.items() if n not in sweep.routes}) for c, layer, names in self._calls]
        wanted = [entry for entry in wanted if entry[2]]
        several = _repeated([name for _, _, names in wanted for name in names.values()])
        edges = [call.edge for call, _, _ in wanted]
        found = torch.autograd.grad(self.outputs, edges, v, retain_graph=not last) if edges else ()
        for (_, layer, names), g in zip(wanted, found, strict=True):
            alone = {k: sweep.variances[n] for k, n in names.items() if n not in several}
            shared = {k: sweep.variances[n] for k, n in names.items() if n in several}
            if alone:
                columns |= {names[k]: square for k, square in layer.squares(g, alone).items()}
            for k, gradient in (layer.gradients(g, shared) if shared else {}).items():
                pooled[names[k]] = pooled[names[k]] + gradient if names[k] in pooled else gradient
        if slow := [name for name in sweep.names if name in sweep.routes and name not in self._unreached]:
            pooled |= sweep.per_example(self.batch, slow, v)
        columns |= {name: sweep.variances[name].square(gradient) for name, gradient in pooled.items()}
        nothing = v.new_zeros(len(v))
        return torch.stack([columns.get(name, nothing) for name in sweep.names], dim=1).double()


def _repeated(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
