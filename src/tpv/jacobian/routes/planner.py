"""Planning: for each parameter, the cheapest route that accounts for all of its uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tpv.jacobian.formulas.registry import formula_obstacle
from tpv.jacobian.routes.recorder import Site
from tpv.jacobian.routes.survey import Survey
from tpv.jacobian.routes.table import NOT_EXPANDABLE, Demotion, Kind, Route, RouteTable
from tpv.model.linearization import Linearization

Modules = tuple[nn.Module, ...]


@dataclass(frozen=True)
class _Choices:
    """What could account for a parameter: modules, from small to large, and why none of them is a formula."""

    modules: tuple[Modules, ...]
    obstacle: str


class Planner:
    """Plans route tables for a model: the analytic formulas of the layers that own a parameter where their
    calls cover it, else the smallest module whose calls do, else the whole model.

    Args:
        lin: the model at w*.
        names: ``id(parameter)`` → name, of the perturbed parameters.

    Attributes:
        analytic: the modules with an analytic formula.
    """

    def __init__(self, lin: Linearization, names: Mapping[int, str]) -> None:
        self._lin, self._names = lin, names
        self._paths = {module: path for path, module in lin.model.named_modules()}
        obstacles = {module: formula_obstacle(module) for module in self._paths}
        by_itself = obstacles[lin.model] and "registered on the model itself and not on one of its layers"
        self.analytic = frozenset(module for module, obstacle in obstacles.items() if not obstacle)
        subtrees = {m: {id(p) for p in m.parameters()} & names.keys() for m in self._paths}
        direct = {m: {id(p) for p in m._parameters.values()} for m in self._paths}
        larger = [m for m in self._paths if m is not lin.model and m not in self.analytic]
        larger.sort(key=lambda m: sum(1 for _ in m.modules()))
        self._choices: dict[str, _Choices] = {}
        for key, name in names.items():
            owners = tuple(m for m in self._paths if key in direct[m])
            usable = [owners] if all(m in larger or m in self.analytic for m in owners) else []
            around = [(m,) for m in larger if key in subtrees[m] and (m,) not in usable]
            obstacle = (
                by_itself if lin.model in owners else next(filter(None, map(obstacles.get, owners)), "")
            )
            self._choices[name] = _Choices((*usable, *around), obstacle)
        self._modules = [m for m in (*self.analytic, *larger) if subtrees[m]]

    def plan(self, few: Any, demotions: tuple[Demotion, ...] = ()) -> tuple[RouteTable, Survey]:
        """The table from one or two examples, after these demotions, and the survey that it comes from.

        Cost: a few forward passes over them.
        """
        expand: frozenset[Site] = frozenset()
        while True:
            survey = Survey(self._lin, self._modules, self.analytic, few, expand)
            routes = {name: self._route(survey, key, demotions) for key, name in self._names.items()}
            shared = {name: survey.shared(route.modules) - expand for name, route in routes.items()}
            if not any(shared.values()):
                axes = survey.input_axes, survey.output_axes
                return RouteTable(routes, *axes, expand, survey.n, demotions), survey
            for name, sites in shared.items():
                if sites <= expand or survey.survives(expand | sites):
                    expand |= sites
                else:
                    demotions += (Demotion(name, NOT_EXPANDABLE, Kind.LOCAL, routes[name].modules),)

    def _route(self, survey: Survey, key: int, demotions: Iterable[Demotion]) -> Route:
        name = self._names[key]
        choices, failed = self._choices[name], [d for d in demotions if d.name == name]
        for demotion in reversed(failed):
            if demotion.kind is not Kind.LOCAL:
                return Route(demotion.kind, reason=demotion.reason)
        excluded = {demotion.modules: demotion.reason for demotion in failed}
        reasons = [choices.obstacle] if choices.obstacle else []
        for modules in choices.modules:
            objection = excluded.get(modules) or survey.objection(key, modules)
            if not objection:
                return self._accepted(modules, reasons)
            reasons.append(objection)
        return Route(Kind.WHOLE_MODEL, reason=_joined(reasons or ["no module's calls account for it"]))

    def _accepted(self, modules: Modules, reasons: list[str]) -> Route:
        if all(module in self.analytic for module in modules):
            label = " and ".join(dict.fromkeys(type(module).__name__ for module in modules))
            return Route(Kind.FORMULA, modules, label)
        label = " and ".join(self._paths[module] for module in modules)
        return Route(Kind.LOCAL, modules, label, _joined(reasons))


def _joined(reasons: list[str]) -> str:
    return "; ".join(list(dict.fromkeys(reasons))[:2])
