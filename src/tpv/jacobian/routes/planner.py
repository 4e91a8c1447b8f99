"""Choosing, for each parameter, the modules whose calls account for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import is_out_of_memory
from tpv.jacobian.fallback.local import is_plain
from tpv.jacobian.formulas.registry import is_known
from tpv.jacobian.routes.recorder import Graph, Recorded, Recorder, Site
from tpv.model.batches import batch_size, narrow
from tpv.model.linearization import Linearization

Axes = tuple[int | None, ...]


@dataclass
class Plan:
    """What to record in a forward pass, and what it is good for.

    Attributes:
        owners: parameter → modules whose calls account for all its uses; no modules: the whole model has to.
        inputs: call → for each argument tensor, the axis that counts examples (each r rows of n · r), None if
            it has none.
        outputs: call → the same for each output tensor that leads on.
        expand: calls whose outputs all examples share, to be given an axis of examples.
        examples: number of examples it was made with; one example cannot tell what is shared.
    """

    owners: dict[str, tuple[nn.Module, ...]] = field(default_factory=dict)
    inputs: dict[Site, Axes] = field(default_factory=dict)
    outputs: dict[Site, Axes] = field(default_factory=dict)
    expand: frozenset[Site] = frozenset()
    examples: int = 0

    @property
    def modules(self) -> list[nn.Module]:
        """Everything to record."""
        return list(dict.fromkeys(module for owners in self.owners.values() for module in owners))


class Router:
    """Plans for a model: closed forms where a layer's own calls cover a parameter, else the smallest module
    that does.

    Args:
        lin: the model at w*.
        names: ``id(parameter)`` → name, of the perturbed parameters.
    """

    def __init__(self, lin: Linearization, names: Mapping[int, str]) -> None:
        self._lin, self._names = lin, names
        self._banned: set[tuple[str, tuple[nn.Module, ...]]] = set()
        subtrees = {m: {id(p) for p in m.parameters()} & names.keys() for m in lin.model.modules()}
        self.known = frozenset(m for m in subtrees if is_known(m))
        direct = {m: {id(p) for p in m._parameters.values()} for m in subtrees}
        larger = [m for m in subtrees if m is not lin.model and m not in self.known]
        larger.sort(key=lambda m: sum(1 for _ in m.modules()))
        self._choices: dict[str, list[tuple[nn.Module, ...]]] = {}
        for key, name in names.items():
            owners = tuple(m for m in subtrees if key in direct[m])
            usable = [owners] if all(m in larger or m in self.known for m in owners) else []
            self._choices[name] = [
                *usable,
                *((m,) for m in larger if key in subtrees[m] and (m,) not in usable),
            ]
        self._modules = [m for m in (*self.known, *larger) if subtrees[m]]

    def ban(self, name: str, owners: tuple[nn.Module, ...]) -> None:
        """Never again account for the parameter by these modules."""
        self._banned.add((name, owners))

    def plan(self, few: Any) -> Plan:
        """The plan from one or two examples. Cost: a few forward passes over them."""
        n = batch_size(few)
        expand: frozenset[Site] = frozenset()
        while True:
            found = _Survey(self._lin, self._modules, self.known, few, n, expand)
            owners = {name: self._choice(found, key) for key, name in self._names.items()}
            missing = [(name, chosen, found.shared(chosen) - expand) for name, chosen in owners.items()]
            if not any(sites for _, _, sites in missing):
                return Plan(owners, found.inputs, found.outputs, expand, n)
            for name, chosen, sites in missing:
                if sites <= expand or found.survives(expand | sites):
                    expand |= sites
                else:
                    self.ban(name, chosen)

    def _choice(self, found: _Survey, key: int) -> tuple[nn.Module, ...]:
        name = self._names[key]
        choices = (c for c in self._choices[name] if (name, c) not in self._banned)
        return next((c for c in choices if found.accounts(key, c)), ())


class _Survey:
    """All calls in a forward pass over two examples, compared with one over the first of them."""

    def __init__(
        self,
        lin: Linearization,
        modules: list[nn.Module],
        known: frozenset[nn.Module],
        few: Any,
        n: int,
        expand: frozenset[Site],
    ) -> None:
        self._lin, self._few, self._n, self._modules, self._known = lin, few, n, modules, known
        self._outputs, calls = self._recorded(few, n, expand)
        self._graph = Graph(self._outputs, calls)
        self._by_site = {call.site: call for call in self._graph.calls}
        self._calls: dict[nn.Module, list[Recorded]] = {}
        for call in self._graph.calls:
            self._calls.setdefault(call.module, []).append(call)
        alone = calls if n == 1 else self._recorded(narrow(few, 0, 1, n), 1, expand)[1]
        self._alone = {call.site: call for call in alone}
        self.inputs: dict[Site, Axes] = {}
        self.outputs: dict[Site, Axes] = {}
        for call in self._graph.calls:
            for kept, of in ((self.inputs, _input_shapes), (self.outputs, self._live_shapes)):
                if (axes := self._axes(call, of)) is not None:
                    kept[call.site] = axes

    def accounts(self, key: int, modules: tuple[nn.Module, ...]) -> bool:
        """Whether calls of these modules cover all uses of a parameter, each usable."""
        calls = [call for module in modules for call in self._calls.get(module, [])]
        usable = all(self._usable(call) for call in calls)
        return usable and self._graph.covered(key, calls)

    def _usable(self, call: Recorded) -> bool:
        if call.known:
            return call.x is not None and len(call.shapes) == 1
        return call.site in self.inputs and call.site in self.outputs and is_plain(call.arguments)

    def shared(self, modules: tuple[nn.Module, ...]) -> set[Site]:
        """The modules' calls with outputs that all examples share."""
        return {
            c.site for m in modules for c in self._calls.get(m, []) if None in self.outputs.get(c.site, ())
        }

    def _live_shapes(self, call: Recorded) -> list[torch.Size]:
        """Of the outputs that matter; of those in the same places for a call over a single example."""
        mine = self._by_site[call.site]
        return [call.shapes[i] for i in self._graph.live(mine) if i < len(call.shapes)]

    def _axes(self, call: Recorded, of: Callable[[Recorded], list[torch.Size]]) -> Axes | None:
        """The axes that are n times as long as for a single example, None where nothing is; None in all if
        shapes differ otherwise.
        """
        alone = self._alone.get(call.site)
        if alone is None or len(of(alone)) != len(of(call)):
            return None
        found: list[int | None] = []
        for shape, one in zip(of(call), of(alone), strict=True):
            if self._n == 1:
                found.append(0 if shape else None)
            elif shape == one:
                found.append(None)
            else:
                grown = [i for i, (a, b) in enumerate(zip(shape, one, strict=False)) if a != b]
                if len(shape) != len(one) or len(grown) != 1 or shape[grown[0]] != self._n * one[grown[0]]:
                    return None
                found.append(grown[0])
        return tuple(found)

    def _recorded(self, few: Any, n: int, expand: frozenset[Site]) -> tuple[Tensor, list[Recorded]]:
        with Recorder(self._modules, n, self._known, expand) as recorder, torch.enable_grad():
            return self._lin(few), recorder.calls

    def survives(self, expand: frozenset[Site]) -> bool:
        """Whether the model computes the same with these outputs expanded."""
        try:
            outputs, _ = self._recorded(self._few, self._n, expand)
        except Exception as error:  # a model may do anything with a tensor of another shape
            if is_out_of_memory(error):
                raise
            return False
        return outputs.shape == self._outputs.shape and torch.allclose(
            outputs, self._outputs, rtol=1e-4, atol=1e-6
        )


def _input_shapes(call: Recorded) -> list[torch.Size]:
    return [t.shape for t in call.inputs]
