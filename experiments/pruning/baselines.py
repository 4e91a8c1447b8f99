"""The published criteria by name."""

from __future__ import annotations

from collections.abc import Callable

import torch_pruning as tp
from torch import nn

from experiments.pruning.calibration import Calibration, Criterion, predictions
from experiments.pruning.first_order import FirstOrder, absolute_mean
from experiments.pruning.first_order import mean_square as squares_of_means
from experiments.pruning.shipped import Random, Shipped, last_square, mean_gradient, mean_square
from experiments.pruning.whc import WHC

SUM = {"group_reduction": "sum", "normalizer": None}

CRITERIA: dict[str, Callable[[nn.Module, Calibration], Criterion]] = {
    "random": lambda model, data: Random(data.seed),
    "L1 magnitude": lambda model, data: Shipped(tp.importance.GroupMagnitudeImportance(p=1, **SUM)),
    "L2 magnitude": lambda model, data: Shipped(tp.importance.GroupMagnitudeImportance(p=2, **SUM)),
    "BN scale": lambda model, data: Shipped(tp.importance.BNScaleImportance(**SUM)),
    "FPGM": lambda model, data: Shipped(tp.importance.FPGMImportance(**SUM)),
    "WHC": lambda model, data: WHC(),
    "Taylor": lambda model, data: Shipped(tp.importance.GroupTaylorImportance(**SUM), mean_gradient, data),
    "Taylor with BN": lambda model, data: FirstOrder(data.images, data.labels, absolute_mean),
    "Hessian": lambda model, data: Shipped(tp.importance.GroupHessianImportance(**SUM), last_square, data),
    "Hessian corrected": lambda model, data: Shipped(
        tp.importance.GroupHessianImportance(**SUM), mean_square, data
    ),
    "JC": lambda model, data: FirstOrder(data.images, data.labels, squares_of_means),
    "JBR": lambda model, data: FirstOrder(data.images, predictions(model, data.images), squares_of_means),
}
"""Name → the criterion for the unpruned model; the model and the data are kept where they are needed."""

WITHOUT_DATA = ("L1 magnitude", "L2 magnitude", "BN scale", "FPGM", "WHC")
USE_LABELS = ("Taylor", "Taylor with BN", "Hessian", "Hessian corrected", "JC")
