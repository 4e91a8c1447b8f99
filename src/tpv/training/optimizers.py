"""Which optimizers retraining accepts: those whose steps are linear in the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from tpv.common.errors import TPVError
from tpv.training.fits import GradientDescent

OptimizerFactory = Callable[[list[Tensor]], Optimizer]

_LINEAR = (torch.optim.SGD, torch.optim.ASGD)


def built(
    factory: OptimizerFactory | None, fit: GradientDescent, leaves: list[Tensor], *, adaptive: bool
) -> Optimizer:
    """The optimizer of a run: ``SGD(lr, momentum)`` of the fit, or what the factory makes of the weights.

    Raises:
        TPVError: if the factory gives no optimizer, one of other tensors, one that needs a closure, or,
            unless ``adaptive``, one whose steps are not linear in the gradient.
    """
    if factory is None:
        assert fit.lr is not None
        return torch.optim.SGD(leaves, lr=fit.lr, momentum=fit.momentum)
    optimizer = factory(leaves)
    if not isinstance(optimizer, Optimizer):
        raise TPVError(
            f"Retraining(optimizer=...) gave a {type(optimizer).__name__}: give a function from parameters "
            "to an optimizer."
        )
    trained = {id(leaf) for leaf in leaves}
    if any(id(p) not in trained for group in optimizer.param_groups for p in group["params"]):
        raise TPVError(
            "Retraining(optimizer=...) moves other tensors than the parameters that it gets: build it "
            "from those only."
        )
    _refuse_unusual(optimizer, adaptive)
    return optimizer


def _refuse_unusual(optimizer: Optimizer, adaptive: bool) -> None:
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TPVError(
            f"Retraining cannot use {name}, which evaluates the loss several times in a step: use "
            "torch.optim.SGD."
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise TPVError(
            f"Retraining cannot use {name}(maximize=True), which climbs the loss: leave maximize out."
        )
    if type(optimizer) not in _LINEAR and not adaptive:
        raise TPVError(
            f"Retraining refuses {name}, because steps that are not linear in the gradient move the weights "
            "about as far "
            "whatever the noise: use torch.optim.SGD, or pass adaptive=True to measure it all the same."
        )
