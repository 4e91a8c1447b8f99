"""What an estimator is: it turns a chunk of a batch into per-example contributions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.model.batches import rows_of
from tpv.model.layers import LayersSpec
from tpv.model.linearization import Linearization
from tpv.perturbations.bound import Bound

TOTAL = "(total)"


@dataclass(frozen=True)
class Chunk:
    """Examples start … start + n of the ``number``-th batch, of ``size``: what fits in memory at a time.

    Attributes:
        batch: these examples.
        whole: the batch that they are part of.
        index: the place of its first example in the data, in the data's own order.
    """

    batch: Any
    whole: Any
    start: int
    n: int
    size: int
    number: int
    index: int

    def rows(self, device: torch.device) -> Tensor:
        """(n,) places of its examples in the data, for :mod:`tpv.common.counters`."""
        return torch.arange(self.index, self.index + self.n, device=device)

    def with_again(self, again: Sequence[int]) -> Any:
        """Its examples, followed by some of them (counted from its first) once more."""
        if not again:
            return self.batch
        places = [*range(self.n), *again]
        return rows_of(self.whole, [self.start + i for i in places], self.size)


@dataclass
class Contribution:
    """Per-example values: (N, m), or (N, D, m) with D shared draws; ``noise`` as in ``Moments.update``."""

    values: Tensor
    noise: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """What an estimator works on: a model, a perturbation of it, randomness, and the size of the data.

    Attributes:
        lin: the model at w*.
        bound: the perturbation, bound to it.
        generator: the source of randomness.
        outputs: K, the number of outputs per example.
        layers: how to group parameters.
        examples: n, or None if it is not known before the data is read.
    """

    lin: Linearization
    bound: Bound
    generator: torch.Generator
    outputs: int
    layers: LayersSpec = None
    examples: int | None = None


class EstimatorRun(ABC):
    """An estimator at work on one problem.

    Attributes:
        names: the m quantities, the total first, then the layers if they are known.
        draws: D, the number of draws that all examples share; 0 if there are none.
        no_layers: why there is no split by layer, None if there is one.
        method: the estimator as the metadata names it.
        reason: why :class:`tpv.Auto` chose it; None if the user did.
        backward: whether it keeps a graph for backward passes.
        chunk_size: examples at a time, where it bounds its memory by itself.
    """

    names: list[str]
    draws: int = 0
    no_layers: str | None = None
    method: str
    reason: str | None = None
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


class Estimator(ABC):
    """How to compute TPV: :class:`Auto`, :class:`Exact`, :class:`Hutchinson`, :class:`HutchPlusPlus`,
    :class:`LinearizedMonteCarlo` or :class:`MonteCarlo`.
    """

    @abstractmethod
    def begin(self, problem: Problem) -> EstimatorRun:
        """Start work on a problem.

        Raises:
            TPVError: if the estimator cannot treat the perturbation.
        """

    def resolved(self, problem: Problem) -> Estimator:
        """The estimator with every choice made that depends on the problem, for other problems to share."""
        return self


def summed(terms: Tensor) -> Tensor:
    """Summed over outputs, one float64 number per example."""
    return terms.double().reshape(len(terms), -1).sum(1)


def squared_norms(outputs: Tensor) -> Tensor:
    """‖·‖² summed over outputs, one float64 number per example."""
    return summed(outputs.double().square())
