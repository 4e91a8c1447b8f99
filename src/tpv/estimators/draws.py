"""Draws of δ that all examples share, and averages over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpv.estimators.base import Chunk, Contribution, EstimatorRun, Problem, summed
from tpv.estimators.control import ControlSums
from tpv.model.linearization import Linearization, masked

_CACHE_BYTES = 2**30
_NO_LAYERS = "each draw moves all layers at once"
_INDEPENDENT = "; Exact and Hutchinson split by layer where the entries of δ are independent"

Quantities = Callable[[Linearization, Any, dict[str, Tensor], list[Tensor]], list[Tensor]]
"""(lin, batch, δ, outputs to compare with: at w*, and at the control if there is one) to m terms, each to be
summed over outputs.

What compares with outputs gives one term more where there is a control: the finite divergence from it."""


@dataclass
class Draws:
    """Displacements δ₁ … δ_D, the same for every example; cached up to 1 GiB, else drawn again."""

    problem: Problem
    count: int
    _seeds: list[int] = field(init=False)
    _cache: dict[int, dict[str, Tensor]] = field(init=False, default_factory=dict)
    _bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._seeds = torch.randint(2**62, (self.count,), generator=self.problem.generator).tolist()

    def metadata(self) -> dict[str, Any]:
        """How many weights move, and the perturbation's own metadata."""
        moved = sum(d.numel() for d in self[0].values())
        return {"moved_parameters": moved, **self.problem.bound.metadata()}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index in self._cache:
            return self._cache[index]
        delta = self.problem.bound.sample(torch.Generator().manual_seed(self._seeds[index]))
        size = sum(d.numel() * d.element_size() for d in delta.values())
        if self._bytes + size <= _CACHE_BYTES:
            self._cache[index] = delta
            self._bytes += size
        return delta


class DrawnRun(EstimatorRun):
    """Averages over shared draws of δ of what ``quantities`` gives; ``undisturbed`` says whether it wants
    outputs to compare with.

    Where the perturbation has a control, ``names[followed]`` is measured at it too.
    """

    backward = False

    def __init__(
        self,
        problem: Problem,
        draws: int,
        method: str,
        names: list[str],
        quantities: Quantities,
        *,
        undisturbed: bool = True,
        followed: int = 0,
    ) -> None:
        bound = problem.bound
        fixed = bound.deterministic
        dependent = fixed or bound.factor is not None or bound.finite_draws is not None
        self.no_layers = _NO_LAYERS + ("" if dependent else _INDEPENDENT)
        self.names, self._quantities = names, quantities
        self._lin, self._undisturbed = problem.lin, undisturbed
        self._deltas = Draws(problem, 1 if fixed else draws)
        self.draws = 0 if fixed else draws
        self.method = f"{method}(draws={self._deltas.count})"
        self._control_delta = bound.control()
        self._control_sums = ControlSums(followed)

    def contribution(self, chunk: Chunk) -> Contribution:
        references = self._references(chunk)
        drawn = torch.stack(
            [self._values(chunk, self._deltas[d], references) for d in range(self._deltas.count)], dim=1
        )
        if self._control_delta is not None:
            at_control = self._values(chunk, self._control_delta, references)
            self._control_sums.update(at_control, drawn, len(self.names))
        values = drawn[..., : len(self.names)]
        return Contribution(values if self.draws else values[:, 0])

    def metadata(self) -> dict[str, Any]:
        drift = {} if self._control_delta is None else {"control": self._control_sums.result()}
        return self._deltas.metadata() | drift

    def _references(self, chunk: Chunk) -> list[Tensor]:
        if not self._undisturbed:
            return []
        deltas = [{}] if self._control_delta is None else [{}, self._control_delta]
        return [self._lin.displaced(chunk.batch, delta) for delta in deltas]

    def _values(self, chunk: Chunk, delta: dict[str, Tensor], references: list[Tensor]) -> Tensor:
        terms = self._quantities(self._lin, chunk.batch, delta, references)
        return torch.stack([summed(masked(q, chunk.batch)) for q in terms], dim=1)
