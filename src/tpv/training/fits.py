r"""Fits of noisy targets, as spectral filters of the kernel.

Fitting z* + ε from w* with the loss ``mse_loss`` (mean over n examples and K outputs) + (γ/2)‖w − w*‖² gives,
for a network linear in its weights, :math:`\delta = J^\top \varphi(\mathcal K)\,\varepsilon` with the kernel
:math:`\mathcal K = JJ^\top` of the training inputs; φ is the filter of the fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.format import described
from tpv.common.options import int_field, number_field


class Fit(ABC):
    """How noisy targets are fitted: :class:`Interpolation`, :class:`Ridge` or :class:`GradientDescent`.

    Attributes:
        has_steps: whether it is made of gradient steps, so that :class:`tpv.Retraining` can take them.
    """

    has_steps: ClassVar[bool] = False

    def __repr__(self) -> str:
        """The options that differ from their defaults, and the first one always."""
        return described(self)

    def resolved(self, dtype: torch.dtype, outputs: int, largest: float) -> Fit:
        """The same with every default filled in, for a kernel computed in ``dtype`` and the rest as in
        :meth:`filter`.
        """
        return self

    @property
    def cutoff(self) -> float:
        """Eigenvalues below this times the largest count as 0; 0 where the fit has no such threshold."""
        return 0.0

    @abstractmethod
    def filter(self, eigenvalues: Tensor, outputs: int, largest: float) -> Tensor:
        """φ of the kernel's eigenvalues, all in float64.

        Args:
            eigenvalues: k, of any shape.
            outputs: nK, the number of terms that the loss averages over.
            largest: the largest eigenvalue of the kernel.

        Raises:
            TPVError: if this fit does not converge on such a kernel.
        """


@dataclass(frozen=True, repr=False)
class Interpolation(Fit):
    r"""Fit the noise exactly, by the smallest displacement: the pseudo-inverse, φ(k) = 1/k, as in the paper's
    theory.

    Args:
        rcond: eigenvalues below ``rcond`` times the largest count as 0; by default 1e-5 in float32, 1e-10 in
            float64.

    Raises:
        TPVError: if ``rcond`` is not a number in (0, 1).

    Example:
        >>> import torch
        >>> Interpolation(1e-3).filter(torch.tensor([4.0, 1e-4]).double(), outputs=2, largest=4.0).tolist()
        [0.25, 0.0]
    """

    rcond: float | None = None

    def __post_init__(self) -> None:
        if self.rcond is not None:
            number_field(self, "rcond", 0, 1, open_low=True)

    @property
    def cutoff(self) -> float:
        """``rcond``."""
        return self.rcond or 0.0

    def resolved(self, dtype: torch.dtype, outputs: int, largest: float) -> Interpolation:
        """With the default ``rcond`` of the dtype."""
        default = 1e-10 if dtype == torch.float64 else 1e-5
        return self if self.rcond is not None else Interpolation(default)

    def filter(self, eigenvalues: Tensor, outputs: int, largest: float) -> Tensor:
        """1/k, and 0 below the threshold."""
        fitted = eigenvalues > (self.rcond or 1e-10) * largest
        return torch.where(
            fitted, 1 / eigenvalues.where(fitted, torch.ones_like(eigenvalues)), torch.zeros_like(eigenvalues)
        )


@dataclass(frozen=True, repr=False)
class Ridge(Fit):
    r"""The minimum of the loss with a proximity penalty γ > 0: φ(k) = 1/(k + λ), λ = nKγ/2.

    Args:
        gamma: γ of the penalty (γ/2)‖w − w*‖².

    Raises:
        TPVError: if ``gamma`` is not a positive number.

    Example:
        >>> import torch
        >>> Ridge(gamma=0.5).filter(torch.tensor([4.0, 0.0]).double(), outputs=4, largest=4.0).tolist()
        [0.2, 1.0]
    """

    gamma: float

    def __post_init__(self) -> None:
        if self.gamma == 0:
            raise TPVError("Ridge(gamma=0) is no penalty: gamma must be above 0, or use Interpolation().")
        number_field(self, "gamma", 0, open_low=True)

    def filter(self, eigenvalues: Tensor, outputs: int, largest: float) -> Tensor:
        """1/(k + λ)."""
        return 1 / (eigenvalues + outputs * self.gamma / 2)


@dataclass(frozen=True, repr=False)
class GradientDescent(Fit):
    r"""A number of steps of full-batch gradient descent, as ``torch.optim.SGD(lr, momentum)`` takes them.

    Without momentum :math:`\varphi(k) = \frac{1 - (1 - \frac{2\eta}{nK}(k+\lambda))^T}{k+\lambda}`, λ =
    nKγ/2; with it the two-term recursion of the heavy ball, by a matrix power for each eigenvalue.

    Args:
        lr: η; by default (None) half of what the largest curvature 2k/nK + γ of the loss allows, 1 over it.
        steps: T.
        momentum: β, in [0, 1).
        gamma: γ of the penalty (γ/2)‖w − w*‖².

    Raises:
        TPVError: for values outside these ranges.

    Example:
        >>> import torch
        >>> k = torch.tensor([2.0, 0.0]).double()
        >>> fit = GradientDescent(lr=0.5, steps=2)
        >>> fit.filter(k, outputs=4, largest=2.0).tolist()  # (1 − 0.5²)/2, and 2 × 0.25 at k = 0
        [0.375, 0.5]
    """

    has_steps: ClassVar[bool] = True

    lr: float | None = None
    steps: int = None  # type: ignore[assignment]  # required: None is refused with a sentence
    momentum: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.lr is not None:
            number_field(self, "lr", 0, open_low=True)
        int_field(self, "steps", 1)
        number_field(self, "momentum", 0, 1)
        number_field(self, "gamma", 0)

    def resolved(self, dtype: torch.dtype, outputs: int, largest: float) -> GradientDescent:
        """With the default ``lr``."""
        curvature = self._curvature(largest, outputs)
        return self if self.lr is not None or curvature <= 0 else replace(self, lr=1 / curvature)

    def _curvature(self, k: Any, outputs: int) -> Any:
        """Of the loss along an eigenvector, for a number or a tensor of eigenvalues."""
        return 2 * k / outputs + self.gamma

    def filter(self, eigenvalues: Tensor, outputs: int, largest: float) -> Tensor:
        """a after T steps of v ← βv + (2/nK)((k + λ)a − 1), a ← a − ηv, from a = v = 0."""
        lr = self.resolved(eigenvalues.dtype, outputs, largest).lr or 0.0
        curvature, push = self._curvature(eigenvalues, outputs), 2 / outputs
        self._refuse_divergence(lr, self._curvature(largest, outputs))
        # (a, v, 1) → (a − ηv', v', 1) with v' = βv + curvature·a − push
        velocity = torch.stack(
            [curvature, *(torch.full_like(curvature, x) for x in (self.momentum, -push))], -1
        )
        unit = torch.eye(3, dtype=torch.float64, device=eigenvalues.device).expand(*curvature.shape, 3, 3)
        step = torch.stack([unit[..., 0, :] - lr * velocity, velocity, unit[..., 2, :]], -2)
        after: Tensor = torch.linalg.matrix_power(step, self.steps)
        return after[..., 0, 2]

    def _refuse_divergence(self, lr: float, curvature: float) -> None:
        highest = 2 * (1 + self.momentum) / curvature if curvature > 0 else math.inf
        if lr >= highest:
            raise TPVError(
                f"{self!r} diverges: on this network and data lr must be below {highest:.3g}, "
                f"2(1 + momentum) over the largest curvature of the loss; lr=None takes {1 / curvature:.3g}."
            )
