"""Along which vectors in the space of outputs a removal counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv._errors import TPVError
from tpv._options import require_int
from tpv.estimators.base import Piece
from tpv.estimators.hutchinson import Probes
from tpv.outputs import class_axis

Cotangents = Callable[[Tensor, Piece], Tensor]
"""(outputs (N, ...), their examples) ↦ v (N, R, K): a score is the mean over R of squares along v."""
_LABELS = ("label", "labels", "target", "targets")


class Direction(ABC):
    """The vectors v of a score E_x[(vᵀ J(x) δ)²].

    Attributes:
        sampled: whether v is a sample from all K directions, so that scores estimate ‖J δ‖².
    """

    sampled: bool = False

    @abstractmethod
    def begin(self, generator: torch.Generator) -> Cotangents:
        """What gives v for the examples one after another."""


@dataclass(frozen=True)
class RandomDirections(Direction):
    """R random vectors with E[vvᵀ] = I for each example, orthogonal to each other: with R = K, scores are ‖J δ‖² itself."""

    probes: int = 1
    sampled = True

    def __post_init__(self) -> None:
        require_int("RandomDirections", "probes", self.probes, 1)

    def begin(self, generator: torch.Generator) -> Cotangents:
        """The probes of :class:`tpv.Hutchinson`."""
        draw = Probes(self.probes, generator)

        def cotangents(z: Tensor, piece: Piece) -> Tensor:
            k = z[0].numel()
            return draw(piece, k)[:, : min(self.probes, k)].to(z)

        return cotangents


@dataclass(frozen=True)
class PredictedClass(Direction):
    """v = softmax(f) − onehot(argmax f): the gradient of the cross-entropy with the model's own prediction. No labels."""

    def begin(self, generator: torch.Generator) -> Cotangents:
        """Nothing is random."""
        return lambda z, piece: _cross_entropy(z, _logits(z).argmax(class_axis(z)))


@dataclass(frozen=True)
class TrueClass(Direction):
    """v = softmax(f) − onehot(y) with the labels y of the batch; positions with a negative label do not count."""

    def begin(self, generator: torch.Generator) -> Cotangents:
        """Nothing is random."""
        return lambda z, piece: _cross_entropy(z, _labels(piece.batch, _logits(z)))


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """(N, 1, K), the gradient of the cross-entropies, summed over positions, by z."""
    axis = class_axis(z)
    onehot = torch.zeros_like(z).scatter_(axis, y.clamp(min=0).unsqueeze(axis), 1)
    return ((z.softmax(axis) - onehot) * (y >= 0).unsqueeze(axis)).reshape(len(z), 1, -1)


def _logits(z: Tensor) -> Tensor:
    if z.ndim < 2 or z.shape[class_axis(z)] < 2:
        raise TPVError(
            "this criterion needs logits of at least two classes, on the last axis of (N, K) or (N, T, K) or on axis 1 of "
            f"(N, K, H, W); got shape {tuple(z.shape)}: use random directions, which need no classes."
        )
    return z


def _labels(batch: Any, z: Tensor) -> Tensor:
    """(N, ...) class indices."""
    if isinstance(batch, Mapping):
        y = next((batch[key] for key in _LABELS if key in batch), None)
    else:
        y = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    expected = z.movedim(class_axis(z), -1).shape[:-1]
    if not isinstance(y, Tensor) or y.shape != expected or y.is_floating_point():
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise TPVError(
            f"this criterion needs the true classes, whole numbers of shape {tuple(expected)}, as the second element of a batch or under "
            f"{', '.join(map(repr, _LABELS))}; got {got}: give data with labels, or use a criterion that needs none."
        )
    if (y >= z.shape[class_axis(z)]).any():
        raise TPVError(f"a label is {int(y.max())}, and there are {z.shape[class_axis(z)]} classes: count them from 0.")
    return y.long()
