"""The route of each parameter, and the reason for every one that is not an analytic formula."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from torch import nn

from tpv.jacobian.routes.recorder import Site

Axes = tuple[int | None, ...]
NOT_EXPANDABLE = "the examples share an output of its module, and one for each example would change the model"


class Kind(Enum):
    """How per-example gradients are computed, from cheap to expensive."""

    FORMULA = "analytic formula"
    LOCAL = "local gradients"
    WHOLE_MODEL = "per-example gradients of the whole model"
    ONE_BY_ONE = "per-example gradients of the whole model, one by one"


@dataclass(frozen=True)
class Route:
    """The route of one parameter.

    Attributes:
        kind: the kind of route.
        modules: those whose calls account for all uses of the parameter; none if the whole model has to.
        label: types of layers with a formula, or names of the modules that run again.
        reason: why no analytic formula applies; "" for a formula.

    Example:
        >>> print(Route(Kind.LOCAL, label="rnn", reason="GRU has no analytic formula"))
        local gradients of rnn
    """

    kind: Kind
    modules: tuple[nn.Module, ...] = ()
    label: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.kind is Kind.FORMULA:
            return self.label
        return f"{self.kind.value} of {self.label}" if self.label else self.kind.value


@dataclass(frozen=True)
class Demotion:
    """A parameter whose route failed a proof.

    Attributes:
        name: the parameter.
        reason: what failed.
        kind: the route it takes instead. ``Kind.LOCAL`` stands for the next cheapest that the planner has.
        modules: whose calls must not account for it any more.
    """

    name: str
    reason: str
    kind: Kind = Kind.WHOLE_MODEL
    modules: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class RouteTable:
    """Parameter → route, with what the routes need to know about the recorded calls.

    Printed, it has one line for each kind of route: how many parameters, the first of them, and why.

    Attributes:
        routes: parameter → route.
        inputs: call → for each argument tensor, the axis that counts examples (r rows each, n · r in all),
            None if it has none.
        outputs: call → the same for each output tensor that leads to the model's.
        expand: calls whose outputs all examples share, to be given an axis of examples.
        examples: number of examples it was planned with; one example cannot show what is shared.
        demotions: every proof that failed, which later plans respect.

    Example:
        >>> print(RouteTable({"w": Route(Kind.WHOLE_MODEL, reason="used outside the calls of its layer")}))
        per-example gradients of the whole model: w (used outside the calls of its layer)
    """

    routes: Mapping[str, Route] = field(default_factory=dict)
    inputs: Mapping[Site, Axes] = field(default_factory=dict)
    outputs: Mapping[Site, Axes] = field(default_factory=dict)
    expand: frozenset[Site] = frozenset()
    examples: int = 0
    demotions: tuple[Demotion, ...] = ()

    @property
    def modules(self) -> list[nn.Module]:
        """Everything to record."""
        return list(dict.fromkeys(module for route in self.routes.values() for module in route.modules))

    @property
    def slow(self) -> dict[str, Route]:
        """The parameters without an analytic formula."""
        return {name: route for name, route in self.routes.items() if route.kind is not Kind.FORMULA}

    def whole_model(self, names: Iterable[str]) -> dict[Kind, list[str]]:
        """Those of the parameters whose gradients come from passes through the whole model, by kind."""
        by_kind: dict[Kind, list[str]] = {Kind.WHOLE_MODEL: [], Kind.ONE_BY_ONE: []}
        for name in names:
            if self.routes[name].kind in by_kind:
                by_kind[self.routes[name].kind].append(name)
        return by_kind

    def demoted(self, demotions: Iterable[Demotion]) -> RouteTable:
        """The table after parameters have fallen back to the whole model."""
        demotions = tuple(demotions)
        fallen = {d.name: Route(d.kind, reason=d.reason) for d in demotions}
        return replace(self, routes={**self.routes, **fallen}, demotions=self.demotions + demotions)

    def without_expansion(self, reason: str) -> RouteTable:
        """The table in which no call's outputs are given an axis of examples."""
        modules = {module for module, _ in self.expand}
        names = [name for name, route in self.routes.items() if modules & set(route.modules)]
        return replace(self.demoted(Demotion(name, reason) for name in names), expand=frozenset())

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for name, route in self.routes.items():
            groups.setdefault((str(route), route.reason), []).append(name)
        for (label, reason), names in groups.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{label}: {names[0]}{more}" + (f" ({reason})" if reason else "")
