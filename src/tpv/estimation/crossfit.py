"""Cross-fitting: noise on one half of the training inputs, evaluated on the other half."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tpv.common.errors import TPVError
from tpv.estimation.same_examples import same_examples
from tpv.model.batches import batch_size, batches
from tpv.model.regrouping import chosen
from tpv.perturbations import PerturbationSpec
from tpv.perturbations.bound import Bound
from tpv.results import TPVResult

Evaluate = Callable[[str, Bound, object], TPVResult]
"""(stage, bound perturbation, inputs) ↦ TPV."""


@dataclass(frozen=True)
class CrossFit:
    """A random split of the training inputs with the perturbation fitted on each half.

    Attributes:
        halves: the perturbation on the first half, and on the second.
        others: the inputs of the second half, and of the first.
    """

    halves: tuple[PerturbationSpec, PerturbationSpec]
    others: tuple[list[Any], list[Any]]

    @classmethod
    def split(
        cls, perturbation: PerturbationSpec, train: object, seed: int, *, whole_batch: bool
    ) -> CrossFit:
        """Split the inputs that a perturbation is fitted on.

        Args:
            perturbation: with ``training_data``.
            train: the same inputs, in the same or an equal object.
            seed: of the split.
            whole_batch: whether all of a batch is input, as for a custom ``forward``.

        Raises:
            TPVError: if ``train`` has other inputs, if there are fewer than two, or for a perturbation that
                cannot be split.
        """
        data = batches(perturbation.training_data)
        examples = sum(batch_size(batch) for batch in data)
        first = torch.randperm(examples, generator=torch.Generator().manual_seed(seed)) < examples // 2
        masks = [mask.tolist() for mask in (first, ~first)]
        halves = (perturbation.subset(masks[0]), perturbation.subset(masks[1]))
        if not same_examples(perturbation.training_data, train, whole_batch=whole_batch):
            raise TPVError(
                f"stability(train=...) must be the data of the {type(perturbation).__name__} itself, the "
                "inputs that its noise is on: pass the same examples in the same order."
            )
        if examples < 2:
            raise TPVError(f"cross-fitting needs at least two training examples, and there is {examples}.")
        return cls(halves, (chosen(data, masks[1]), chosen(data, masks[0])))

    def results(
        self, bound: Iterable[Bound], test: object, evaluate: Evaluate
    ) -> tuple[TPVResult, TPVResult]:
        """TPV of the noise on one half, on the other half and on the test inputs, each averaged over both
        halves.
        """
        halves = list(bound)
        across = [
            evaluate("cross-fitted", half, other) for half, other in zip(halves, self.others, strict=True)
        ]
        unseen = [evaluate("test of halves", half, test) for half in halves]
        return _average(*across, same_examples=False), _average(*unseen, same_examples=True)


def _average(a: TPVResult, b: TPVResult, *, same_examples: bool) -> TPVResult:
    """Their average by examples; standard errors add in quadrature, or linearly over the same examples."""
    n = a.n_examples + b.n_examples
    p, q = a.n_examples / n, b.n_examples / n
    add = (lambda x, y: x + y) if same_examples else math.hypot
    return dataclasses.replace(
        a,
        value=p * a.value + q * b.value,
        stderr=add(p * a.stderr, q * b.stderr),
        mc_stderr=add(p * a.mc_stderr, q * b.mc_stderr),
        n_examples=a.n_examples if same_examples else n,
        draws=tuple(p * x + q * y for x, y in zip(a.draws, b.draws, strict=True)),
        draw_std=math.nan,
        spectrum=None,
        metadata={**a.metadata, "noise_on": "each half of the training examples in turn"},
    )
