"""Labels that come with a batch, and which predictions are correct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpv.common.errors import TPVError
from tpv.model.batches import LABELS
from tpv.model.outputs import class_axis

IGNORED = -100
"""The label of predictions that do not count, as in PyTorch's losses; so does every negative one."""


def labels_of(batch: Any) -> Tensor | None:
    """The labels that come with the inputs, if any."""
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABELS if key in batch), None)
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        labels = batch[1]
    return labels if isinstance(labels, Tensor) else None


def check_classes(what: str, labels: Tensor, f: Tensor) -> None:
    """Refuse labels beyond the last class.

    Raises:
        TPVError: with the largest label.
    """
    classes = f.shape[class_axis(f)]
    if labels.numel() and labels.max() >= classes:
        raise TPVError(f"{what} is {int(labels.max())}, and there are {classes} classes: count them from 0.")


def correct_predictions(f: Tensor, batch: Any) -> Tensor | None:
    """Which of the labelled predictions are correct; None without integer labels of their shape."""
    labels = labels_of(batch)
    if labels is None or labels.is_floating_point() or f.ndim < 2:
        return None
    check_classes("a test label", labels, f)
    classes = f.argmax(class_axis(f))
    return (classes == labels)[labels != IGNORED].double() if classes.shape == labels.shape else None
