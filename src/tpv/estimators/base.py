"""What an estimator is: a procedure that turns a chunk of a batch into per-example contributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpv.model.layers import LayersSpec
from tpv.model.linearization import Linearization
from tpv.perturbations import Perturbation
from tpv.perturbations.base import displacement

TOTAL = "(total)"
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Chunk:
    """Examples start … start + n of the ``number``-th batch, of ``size``: what fits in memory at a time.

    Attributes:
        index: the place of its first example in the data, in the data's own order.
    """

    batch: Any
    start: int
    n: int
    size: int
    number: int
    index: int

    def rows(self, device: torch.device) -> Tensor:
        """(n,) places of its examples in the data, for :mod:`tpv.common.counters`."""
        return torch.arange(self.index, self.index + self.n, device=device)


@dataclass
class Contribution:
    """Per-example values: (N, m), or (N, D, m) with D shared draws; ``noise`` as in ``Moments.update``."""

    values: Tensor
    noise: Tensor | None = None


class EstimatorRun(ABC):
    """An estimator at work on one model and one perturbation.

    Attributes:
        names: the m quantities, the total first, then the layers if they are known.
        draws: D, the number of draws that all examples share; 0 if there are none.
        no_layers: why there is no split by layer, None if there is one.
        method: the estimator as the metadata shall name it.
        backward: whether it keeps a graph for backward passes.
        chunk_size: examples at a time, where the procedure bounds its memory by itself.
    """

    names: list[str]
    draws: int = 0
    no_layers: str | None = None
    method: str
    backward: bool = True
    chunk_size: int | None = None

    @abstractmethod
    def contribution(self, chunk: Chunk) -> Contribution:
        """Values of the chunk's examples."""

    def metadata(self) -> dict[str, Any]:
        """What the metadata should say once all is done."""
        return {}

    def extra_fields(self) -> dict[str, Any]:
        """Further fields of the result, by their names in :class:`tpv.TPVResult`."""
        return {}

    def scratch(self, batch: Any) -> int:
        """Numbers per example that are written out at a time, beyond what autograd keeps for a backward
        pass.
        """
        return 0


@dataclass(frozen=True)
class Problem:
    """What an estimator meets: model, perturbation, randomness, and the number of outputs per example."""

    lin: Linearization
    perturbation: Perturbation
    generator: torch.Generator
    outputs: int
    layers: LayersSpec = None


class Estimator(ABC):
    """A way to compute TPV: :class:`Exact`, :class:`Hutchinson`, :class:`LinearizedMonteCarlo` or
    :class:`MonteCarlo`.
    """

    @abstractmethod
    def begin(self, problem: Problem) -> EstimatorRun:
        """Meet the model.

        Raises:
            TPVError: if the estimator cannot treat the perturbation.
        """


@dataclass
class Draws:
    """Displacements δ₁ … δ_D, the same for every example; kept while they fit in 1 GiB, else drawn again."""

    problem: Problem
    count: int
    _seeds: list[int] = field(init=False)
    _kept: dict[int, dict[str, Tensor]] = field(init=False, default_factory=dict)
    _bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._seeds = torch.randint(2**62, (self.count,), generator=self.problem.generator).tolist()

    def metadata(self) -> dict[str, Any]:
        """How many weights move, and what the perturbation has to say."""
        perturbation, weights = self.problem.perturbation, self.problem.lin.weights
        said = perturbation.metadata(weights.select(perturbation.params))
        return {"moved_parameters": sum(d.numel() for d in self[0].values()), **said}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index in self._kept:
            return self._kept[index]
        generator = torch.Generator().manual_seed(self._seeds[index])
        delta = displacement(self.problem.perturbation, self.problem.lin.weights, generator)
        size = sum(d.numel() * d.element_size() for d in delta.values())
        if self._bytes + size <= _CACHE_BYTES:
            self._kept[index] = delta
            self._bytes += size
        return delta


def summed(terms: Tensor) -> Tensor:
    """Summed over outputs, one float64 number per example."""
    return terms.double().reshape(len(terms), -1).sum(1)


def squared_norms(outputs: Tensor) -> Tensor:
    """‖·‖² summed over outputs, one float64 number per example."""
    return summed(outputs.double().square())
