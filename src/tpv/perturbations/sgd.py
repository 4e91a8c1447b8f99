"""The stationary noise of SGD, as a covariance proxy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tpv.common.options import int_field, number_field
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.base import DiagonalPerturbation
from tpv.perturbations.bound import Variances


@dataclass(frozen=True, repr=False)
class SGDNoise(DiagonalPerturbation):
    r"""Fluctuation of the weights under SGD at constant learning rate: :math:`C = \frac{\eta}{2B(1-\beta)}
    I`.

    This solves the Lyapunov equation HC + CH = (η/B)Σ for a gradient noise Σ equal to the Hessian H,
    at a minimum, in the stationary state (arXiv 2512.11089). It is a *proxy*: along real trajectories
    most of the movement of the predictions is drift, which it leaves out.

    Args:
        lr: learning rate η.
        batch_size: B.
        momentum: β, in [0, 1).
        params: glob patterns of the parameters that move, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: for values outside these ranges.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> round(tpv.estimate(model, torch.ones(1, 3).double(), tpv.SGDNoise(lr=0.1, batch_size=5)).value, 6)
        0.06
    """

    lr: float
    batch_size: int
    momentum: float = 0.0
    params: Patterns = None

    def __post_init__(self) -> None:
        number_field(self, "lr", 0, open_low=True)
        int_field(self, "batch_size", 1)
        number_field(self, "momentum", 0, 1)

    def variance(self, weights: Weights) -> Variances:
        """η / (2B(1−β)) for every parameter."""
        value = self.lr / (2 * self.batch_size * (1 - self.momentum))
        return {name: torch.tensor(value, dtype=torch.float64) for name in weights}
