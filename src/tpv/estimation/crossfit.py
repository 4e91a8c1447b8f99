"""Label noise of one part of the training inputs, read on the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeGuard

import torch

from tpv.common.errors import TPVError
from tpv.model.batches import batch_size, batches
from tpv.model.regrouping import chosen
from tpv.perturbations.base import Perturbation, Sum
from tpv.results import TPVResult
from tpv.training.label_noise import LabelNoise
from tpv.training.retraining import Retraining

Law = LabelNoise | Retraining
Read = Callable[[object, Law], TPVResult]


def is_cross_fitted(law: Perturbation, train: object) -> TypeGuard[Law]:
    """Whether the law is noise on training inputs.

    Raises:
        TPVError: if it is but cannot be split, because it is a part of a sum or on other inputs than
            ``train``.
    """
    if isinstance(law, Sum) and any(isinstance(part, Law) for part in law.parts):
        raise TPVError(
            "stability cannot cross-fit a sum: ask for its LabelNoise or Retraining alone, and for the other "
            "parts alone."
        )
    if not isinstance(law, Law):
        return False
    if law.data is not train:
        raise TPVError(
            f"stability(train=...) must be the data of the {type(law).__name__} itself, the inputs that its "
            "noise is on: "
            "pass the same object, train=law.data."
        )
    return True


def cross_fit(law: Law, test: object, read: Read, seed: int) -> tuple[TPVResult, TPVResult]:
    """TPV of noise on a random half of the training inputs: read on the other half, and on the test inputs.

    Each half takes its turn, and the two results are averaged.

    Args:
        law: the noise, with the training inputs.
        test: unseen inputs.
        read: (inputs, noise) ↦ TPV.
        seed: of the split.

    Raises:
        TPVError: if there are fewer than two training inputs.
    """
    data = batches(law.data)
    examples = sum(batch_size(batch) for batch in data)
    if examples < 2:
        raise TPVError(f"cross-fitting needs at least two training examples, and there is {examples}.")
    first = torch.randperm(examples, generator=torch.Generator().manual_seed(seed)) < examples // 2
    masks = [mask.tolist() for mask in (first, ~first)]
    laws = [law.subset(mask) for mask in masks]
    others = [read(chosen(data, mask), half) for half, mask in zip(laws, reversed(masks), strict=True)]
    unseen = [read(test, half) for half in laws]
    return _average(*others, same_examples=False), _average(*unseen, same_examples=True)


def _average(a: TPVResult, b: TPVResult, *, same_examples: bool) -> TPVResult:
    """Their average by examples; errors add in squares, or as they are where both were read on the same
    examples.
    """
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
