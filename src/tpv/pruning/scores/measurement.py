"""How far a pruned network has moved from the unpruned one, and how often it is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate
from tpv.estimation.linearity import linearity
from tpv.model.batches import call_model, chunks
from tpv.model.linearization import Forward
from tpv.model.outputs import Output, OutputSpec, class_axis, mask_of
from tpv.perturbations import Masking
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.verification import masks
from tpv.pruning.scores.criteria import IGNORED, labels_of
from tpv.results import LinearityResult

_AT_ONCE = 128


class Yardstick:
    """The unpruned network's outputs on some inputs, to measure pruned versions against.

    Args:
        model: the unpruned network.
        data: batches, in memory; with labels for the accuracy.
        output: what of the outputs counts.
        forward: as in :func:`tpv.estimate`.
    """

    def __init__(
        self, model: nn.Module, data: Sequence[Any], output: Output, forward: Forward | None
    ) -> None:
        self._parts = [part for batch in data for part in chunks(batch, _AT_ONCE)]
        self._output, self._run = output, forward or call_model
        self._before = list(self._outputs(model))

    def _outputs(self, model: nn.Module) -> Iterator[Tensor]:
        for part in self._parts:
            with torch.no_grad():
                f = self._output.select(self._run(model, part))
            yield f

    def __call__(self, model: nn.Module) -> tuple[Estimate, Estimate | None]:
        """E‖Δf‖² (padded positions do not count) and the accuracy, None without labels."""
        moved: list[Tensor] = []
        right: list[Tensor | None] = []
        for part, before, after in zip(self._parts, self._before, self._outputs(model), strict=True):
            gap = self._output.divergence(before, after)
            padding = mask_of(part, gap)
            moved.append((gap if padding is None else gap * padding).reshape(len(gap), -1).sum(1).cpu())
            right.append(correct(after, part))
        return mean(torch.cat(moved)), _share(right)

    @property
    def unpruned_accuracy(self) -> Estimate | None:
        """Of the unpruned network; None without labels."""
        return _share([correct(f, part) for part, f in zip(self._parts, self._before, strict=True)])


def _share(right: Sequence[Tensor | None]) -> Estimate | None:
    known = [hits.cpu() for hits in right if hits is not None]
    return mean(torch.cat(known)) if known else None


def correct(f: Tensor, batch: Any) -> Tensor | None:
    """Which of the labelled predictions are right; None without integer labels of their shape."""
    labels = labels_of(batch)
    if labels is None or labels.is_floating_point() or f.ndim < 2:
        return None
    predicted, classes = f.argmax(class_axis(f)), f.shape[class_axis(f)]
    if labels.numel() and labels.max() >= classes:
        raise TPVError(
            f"a test label is {int(labels.max())}, and there are {classes} classes: count them from 0."
        )
    return (predicted == labels)[labels != IGNORED].double() if predicted.shape == labels.shape else None


def mean(values: Tensor) -> Estimate:
    """The mean over examples with its standard error."""
    n = len(values)
    stderr = values.double().std().item() / math.sqrt(n) if n > 1 else math.nan
    return Estimate(values.double().mean().item(), stderr, 0.0)


def predict(
    model: nn.Module,
    data: Sequence[Any],
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Sequence[int]],
    output: OutputSpec,
    forward: Forward | None,
) -> LinearityResult:
    """The output change of a removal, before anything is cut: δ = −w for every weight that reads a removed
    channel.

    Cost: one Jacobian-vector product and one forward pass.
    """
    movable = copy.deepcopy(model).requires_grad_(True)
    return linearity(movable, data, Masking(masks(model, groups, removed)), output=output, forward=forward)
