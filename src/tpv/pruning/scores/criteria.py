"""Directions in output space along which a channel's removal is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import require_choice, require_int, require_number
from tpv.model.labels import IGNORED, check_classes, labels_of
from tpv.model.outputs import OutputSpec, class_axis
from tpv.pruning.channels.groups import Parameters


class Criterion(ABC):
    r"""A score of every channel, the mean over examples of :math:`\frac1R \sum_r (v_r^\top J_g w_g)^2` with
    cotangents v of its own.
    """

    parameters: Parameters
    interactions: bool = False
    probes: int = 1
    output: OutputSpec = "logits"
    freezes: bool = False
    """Whether the labels come from the unpruned model."""

    @abstractmethod
    def labels(self, f: Tensor, batch: Any) -> Tensor | None:
        """A class for each prediction, from f (N, ...) or the batch; None where the directions are random."""

    def directions(self, f: Tensor, labels: Tensor) -> Tensor:
        """Cotangents m = softmax(f) − onehot(labels) (N, ...), zero where a label is ``IGNORED``."""
        axis = class_axis(f)
        hot = F.one_hot(labels.clamp(min=0), f.shape[axis]).movedim(-1, axis).to(f)
        return (f.softmax(axis) - hot) * (labels >= 0).unsqueeze(axis)

    def __post_init__(self) -> None:
        require_choice(type(self).__name__, "parameters", self.parameters, ("consumers", "all"))


@dataclass(frozen=True)
class TPVImportance(Criterion):
    r"""The first-order output change when the channel is removed:

    .. math:: \mathrm{score}(g) = E_x \|J_g w_g\|^2 = E_x E_v (v^\top J_g w_g)^2, \qquad E[v v^\top] = I.

    With the weights of the layers that take the channel as input (``parameters="consumers"``), δ = −w_g
    removes exactly what the network loses with it; all parameters together count the same path once for each
    layer on it.

    Args:
        probes: R, random directions for each example; K orthogonal ones, as many as there are outputs, are
            exact.
        parameters: ``"consumers"``, the weights that take the channel as input; ``"all"``, every parameter
            that is removed with it, norms and biases included.
        output: the output space, as in :func:`tpv.estimate`.
        interactions: keep every example's terms :math:`v^\top J_g w_g`, so that channels can be removed one
            after the other by what each adds to those that are gone, :math:`E\|J_g w_g + \sum_{h\
            \mathrm{gone}} J_h w_h\|^2`; takes examples × probes × channels numbers. In later steps the
            output change so far counts too, in whose units only ``parameters="consumers"`` are.

    Raises:
        TPVError: for other values.

    Cost per example: one forward pass and R backward passes without weight gradients (about 1
    forward+backward pass for R = 1).

    Example:
        >>> import torch, tpv.pruning
        >>> tpv.pruning.TPVImportance(probes=4)
        TPVImportance(probes=4, parameters='consumers', output='logits', interactions=False)
    """

    probes: int = 1
    parameters: Parameters = "consumers"
    output: OutputSpec = "logits"
    interactions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("TPVImportance", "probes", self.probes, 1)

    def labels(self, f: Tensor, batch: Any) -> None:
        """None: the directions are random."""


@dataclass(frozen=True)
class JBR(Criterion):
    r"""Jacobian-based removal, of the paper, example by example:

    .. math:: \mathrm{score}(g) = E_x (m^\top J_g w_g)^2, \ m = \mathrm{softmax}(f) - \mathrm{onehot}(y^*),

    y* the argmax of the *unpruned* model, frozen: no labels are needed. m f is the gradient of the
    cross-entropy with y*. The published code squares the gradient of a batch's mean instead, in which the
    examples' directions cancel.

    Args:
        confidence: leave out predictions whose largest probability under the unpruned model is below this.
        parameters, interactions: as in :class:`TPVImportance`.

    Raises:
        TPVError: for other values.

    Cost per example: one forward pass and one backward pass without weight gradients.

    Source: D. Arpit, arXiv 2512.11089.

    Example:
        >>> import torch, tpv.pruning
        >>> tpv.pruning.JBR(confidence=0.9).labels(torch.tensor([[0.0, 9.0], [0.1, 0.0]]), None)
        tensor([   1, -100])
    """

    confidence: float = 0.0
    parameters: Parameters = "all"
    interactions: bool = False
    freezes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("JBR", "confidence", self.confidence, 0, 1)

    def labels(self, f: Tensor, batch: Any) -> Tensor:
        """The model's own class of each prediction, ``IGNORED`` below the confidence."""
        _refuse_single_outputs("JBR", f)
        top, classes = f.softmax(class_axis(f)).max(class_axis(f))
        return classes.masked_fill(top < self.confidence, IGNORED)


@dataclass(frozen=True)
class JC(Criterion):
    r"""As :class:`JBR`, with the true label for y*: :math:`E_x (m^\top J_g w_g)^2`, at the same cost.

    Batches are ``(inputs, labels)``, or mappings with ``labels``; negative ones are ignored. Each output is
    compared with the label at its own position: shift those of a causal language model.

    Args:
        parameters, interactions: as in :class:`JBR`.

    Raises:
        TPVError: for other values, or batches without labels.

    Example:
        >>> import torch, tpv.pruning
        >>> tpv.pruning.JC().directions(torch.zeros(1, 2), torch.tensor([1]))
        tensor([[ 0.5000, -0.5000]])
    """

    parameters: Parameters = "all"
    interactions: bool = False

    def labels(self, f: Tensor, batch: Any) -> Tensor:
        """The labels of the batch."""
        _refuse_single_outputs("JC", f)
        labels, shape = labels_of(batch), f.movedim(class_axis(f), -1).shape[:-1]
        if labels is None or labels.is_floating_point() or labels.shape != shape:
            got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise TPVError(
                f"JC needs integer labels of shape {tuple(shape)} in each batch, (inputs, labels) or a "
                f"mapping with labels; got {got}."
            )
        check_classes("a label", labels, f)
        return labels.long()


def _refuse_single_outputs(name: str, f: Tensor) -> None:
    if f.ndim < 2 or f.shape[class_axis(f)] < 2:
        raise TPVError(
            f"{name} needs scores of at least two classes, and the outputs are of shape {tuple(f.shape)}: "
            "use TPVImportance."
        )
