"""The cotangent sweep: one forward pass, then backward passes that stop at layer outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.jacobian.batch_pass import LOCAL, ONE_BY_ONE, WHOLE, BatchPass, random_signs
from tpv.jacobian.fallback.whole_model import one_by_one
from tpv.jacobian.formulas.base import Variance, tolerance
from tpv.jacobian.routes.planner import Plan, Router
from tpv.jacobian.routes.recorder import Graph, Recorded, Recorder
from tpv.model.batches import batch_size, duplicated, ends
from tpv.model.linearization import Linearization


class Squares(Protocol):
    """v (N, K) ↦ squares (N, number of parameters); ``last=True`` frees the graph on the way."""

    def __call__(self, v: Tensor, last: bool = False) -> Tensor: ...


Gradients = Callable[[Tensor, Collection[str]], dict[str, Tensor]]
_CHECKS = 8


@dataclass
class Sweep:
    r"""Per-example squares :math:`\sum_{i \in p} c_i (J(x)^\top v)_i^2` of every parameter p, without batch
    weight gradients.

    Layers with a closed form turn (input, output gradient) into exact per-example numbers; any other module
    that holds parameters runs again by itself under ``torch.func``. Whatever the calls of modules do not
    account for, by the autograd graph or by a comparison with single-example gradients on the first batches,
    goes through the whole model; ``routes`` says how each parameter went, and ``unreached`` which of them no
    output of any batch depended on.

    Args:
        lin: the model at w*.
        variance: c, per parameter, broadcastable to its shape.
        passes: how many cotangents each batch will see (what they share is worth more preparation).
    """

    lin: Linearization
    variance: Mapping[str, Tensor]
    passes: int = 1
    unreached: set[str] | None = None
    whole: dict[str, str] = field(default_factory=dict)
    plan: Plan = field(init=False, default_factory=Plan)
    _unverified: set[str] = field(init=False)
    newly_expanded: bool = False
    _checks: int = 0
    _harmless: set[Any] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.ids = {id(p): n for n, p in self.lin.model.named_parameters() if n in self.variance}
        self.names = list(self.variance)
        self.variances = {n: Variance(c, self.lin.weights[n].ndim) for n, c in self.variance.items()}
        self._modules = {module: name for name, module in self.lin.model.named_modules()}
        self._router = Router(self.lin, self.ids)
        self._unverified = set(self.names)

    @property
    def routes(self) -> dict[str, str]:
        """Parameter → the formula of its layer, or how else its gradients were found."""
        return {
            name: self.whole.get(name) or self._route(self.plan.owners.get(name, ())) for name in self.names
        }

    def _route(self, owners: tuple[nn.Module, ...]) -> str:
        if not owners:
            return WHOLE
        if all(module in self._router.known for module in owners):
            return " and ".join(dict.fromkeys(type(module).__name__ for module in owners))
        return f"{LOCAL} of {' and '.join(self._modules[module] for module in owners)}"

    @contextmanager
    def linearized(self, batch: Any) -> Iterator[tuple[Tensor, Squares]]:
        """Outputs (N, ...) and the function from cotangents to per-example squares.

        Cost: one forward pass, then per call one backward pass to the layer outputs plus the layers'
        own products (0.6 to 0.8 of a forward+backward pass in all); two backward passes more where rows may
        have changed places; and before the first batches, passes over two examples to plan and verify the
        routes.
        """
        if self.lin.needs_padding(batch):
            with self.linearized(duplicated(batch)) as (outputs, both):
                yield outputs[:1], lambda v, last=False: both(torch.cat([v, torch.zeros_like(v)]), last)[:1]
            return
        self.prepare(batch)
        with self._recorded(batch) as pass_:
            yield pass_.outputs.detach(), pass_.squares

    @contextmanager
    def jacobian(self, batch: Any) -> Iterator[tuple[Tensor, Gradients]]:
        """Outputs (N, ...) and the function from cotangents v (N, K) and names to per-example gradients (N,
        *shape).

        Cost: one forward pass, then per call one backward pass to the outputs of the layers that own these
            parameters.
        """
        if self.lin.needs_padding(batch):
            with self.jacobian(duplicated(batch)) as (outputs, both):
                yield (
                    outputs[:1],
                    lambda v, names: {
                        n: g[:1] for n, g in both(torch.cat([v, torch.zeros_like(v)]), names).items()
                    },
                )
            return
        self.prepare(batch)
        with self._recorded(batch) as pass_:
            yield pass_.outputs.detach(), pass_.gradients

    def scratch(self, batch: Any) -> int:
        """Most numbers per example that any layer writes out at a time."""
        with self._recorded(self._few(batch)) as pass_:
            return pass_.scratch

    def _few(self, batch: Any) -> Any:
        return duplicated(batch) if self.lin.needs_padding(batch) else ends(batch, batch_size(batch))

    def prepare(self, batch: Any) -> None:
        """Plan the routes with the batch's first and last example, and compare them with single-example
        gradients.
        """
        unplanned = self.plan.examples < min(2, batch_size(batch))
        if not unplanned and not (self._unverified and self._checks < _CHECKS):
            return
        few = self._few(batch)
        with self.lin.raw():
            if unplanned:
                self.plan = self._router.plan(few)
                self._unverified, self._checks = set(self.names), 0
            if self._unverified and self._checks < _CHECKS:
                self._verify(few)

    @contextmanager
    def _recorded(self, batch: Any) -> Iterator[BatchPass]:
        outputs, calls = self._run(batch)
        if not outputs.requires_grad:
            raise TPVError(
                "the outputs do not depend on any perturbed parameter: the model runs under torch.no_grad() "
                "or detaches its outputs, or params= selects parameters that it does not use."
            )
        with torch.no_grad():
            pass_ = BatchPass(self, batch, outputs, Graph(outputs, calls))
            self.unreached = pass_.unreached if self.unreached is None else self.unreached & pass_.unreached
            yield pass_

    def _run(self, batch: Any) -> tuple[Tensor, list[Recorded]]:
        """The forward pass. Where giving shared outputs an axis of examples changes what the model computes,
        never again that.
        """
        plan = self.plan
        with (
            Recorder(plan.modules, batch_size(batch), self._router.known, plan.expand) as recorder,
            torch.enable_grad(),
        ):
            try:
                outputs = self.lin(batch)
            except Exception as error:
                if not plan.expand or is_out_of_memory(error):
                    raise
                outputs = None
        if outputs is not None and self._as_without_expansion(batch, outputs, recorder.calls):
            return outputs, recorder.calls
        expanded = {module for module, _ in plan.expand}
        self.send_whole(name for name, owners in plan.owners.items() if expanded & set(owners))
        self.plan = replace(plan, expand=frozenset())
        return self._run(batch)

    @torch.no_grad()
    def _as_without_expansion(self, batch: Any, outputs: Tensor, calls: list[Recorded]) -> bool:
        """Whether the outputs are those of the plain model, asked whenever the shared inputs are new."""
        shared = [call for call in calls if call.site in self.plan.expand]
        key = (
            tuple(outputs.shape),
            *((call.shapes, *((t.shape, t.double().sum().item()) for t in call.inputs)) for call in shared),
        )
        self.newly_expanded = bool(shared) and key not in self._harmless
        if self.newly_expanded:
            plain = self.lin(batch)
            if plain.shape != outputs.shape or not torch.allclose(
                plain, outputs, rtol=tolerance(plain.dtype) / 10, atol=1e-5
            ):
                return False
            self._harmless.add(key)
        return True

    def _verify(self, few: Any) -> None:
        """Ban every route whose squares differ from plain single-example gradients, until all agree.

        A parameter that the examples do not move at all stays unverified, for the next batch to tell.
        """
        self._checks += batch_size(few) > 1
        reference: dict[str, Tensor] = {}
        while True:
            with self._recorded(few) as pass_:
                v = random_signs(pass_.outputs)
                mine = pass_.squares(v.reshape(len(v), -1))
                self._refuse_hidden_use(
                    few, pass_.outputs.detach(), sorted(pass_.unreached & self._unverified)
                )
            reference = reference or one_by_one(self.lin, self.variances, few, v)
            wrong = [
                name
                for i, name in enumerate(self.names)
                if _differs(mine[:, i], reference[name], v.dtype, mine.sum(1))
            ]
            wrong = [name for name in wrong if self.plan.owners[name] and name not in self.whole]
            if not wrong:
                break
            for name in wrong:
                self._router.ban(name, self.plan.owners[name])
            self.plan = self._router.plan(few)
        if len(v) > 1:
            self._unverified -= {name for name in self.names if (reference[name] > 0).all()}

    @torch.no_grad()
    def _refuse_hidden_use(self, few: Any, outputs: Tensor, names: list[str]) -> None:
        """Refuse parameters that move the outputs although autograd does not see it."""
        weights = self.lin.weights
        moved = (
            self.lin.at({name: weights[name] + 0.1 * (weights[name].abs() + 0.1) for name in names}, few)
            if names
            else outputs
        )
        if not torch.allclose(moved, outputs, rtol=1e-3, atol=1e-6):
            raise TPVError(
                f"the model uses {', '.join(names[:3])} under torch.no_grad() or detached, so that their "
                "effect has no gradient: "
                "freeze them with requires_grad_(False), or leave them out with params=."
            )

    def send_whole(self, names: Iterable[str]) -> None:
        """From now on find the parameters' gradients by passes through the whole model."""
        for name in names:
            self.whole.setdefault(name, WHOLE)

    def sent_one_by_one(self, names: list[str]) -> None:
        """Note that ``torch.func`` cannot trace the model."""
        self.whole.update(dict.fromkeys(names, ONE_BY_ONE))


def _differs(mine: Tensor, expected: Tensor, dtype: torch.dtype, total: Tensor) -> bool:
    gap = (mine - expected).abs()
    return bool((gap > tolerance(dtype) * expected.abs() + 1e-9 * total).any())
