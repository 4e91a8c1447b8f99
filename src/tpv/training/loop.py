"""The training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.progress import Progress
from tpv.model.weights import Weights
from tpv.ntk.operator import NTK
from tpv.ntk.training_set import TrainingSet
from tpv.training.fits import GradientDescent
from tpv.training.objective import Objective, Sums
from tpv.training.optimizers import OptimizerFactory, built

_POWER_ITERATIONS = 10


@dataclass(frozen=True)
class Trainer:
    """Fits targets from w*, by steps on the mean squared error + (γ/2)‖w − w*‖².

    Attributes:
        train: training inputs.
        weights: w*, those that are trained.
        fit: lr, steps, momentum and γ.
        factory: makes another optimizer than ``SGD(lr, momentum)``.
        batch_size: consecutive examples in a step; None for all.
        adaptive: whether optimizers whose steps are not linear in the gradient are allowed.
    """

    train: TrainingSet
    weights: Weights
    fit: GradientDescent
    factory: OptimizerFactory | None = None
    batch_size: int | None = None
    adaptive: bool = False

    def optimizer(self, leaves: dict[str, Tensor]) -> torch.optim.Optimizer:
        """A new one, for these weights."""
        return built(self.factory, self.fit, list(leaves.values()), adaptive=self.adaptive)

    def leaves(self) -> dict[str, Tensor]:
        """Copies of w* that can be trained."""
        return {name: w.detach().clone().requires_grad_() for name, w in self.weights.items()}

    def run(self, number: int, targets: Tensor) -> tuple[dict[str, Tensor], float]:
        """δ = w − w* after all steps, and the mean squared error there.

        Raises:
            TPVError: if the run diverges.

        Cost: ``steps`` forward+backward passes over a minibatch, and one forward pass over the training set.
        """
        leaves = self.leaves()
        optimizer, objective = self.optimizer(leaves), Objective(self.train, targets)
        batches = objective.gradients(leaves, self.batch_size)
        with Progress.current().stage(_name(number), total=self.fit.steps) as stage:
            for step, sums in zip(range(1, self.fit.steps + 1), batches, strict=False):
                if not math.isfinite(sums.mse):
                    raise self._diverged(number, step, optimizer)
                self._set_gradient(leaves, sums)
                optimizer.step()
                stage.advance(text=f"mse {sums.mse:.3g}")
        after = objective.mse(leaves)
        if not math.isfinite(after):
            raise self._diverged(number, self.fit.steps, optimizer)
        return {name: leaf.detach() - self.weights[name] for name, leaf in leaves.items()}, after

    def _set_gradient(self, leaves: dict[str, Tensor], sums: Sums) -> None:
        for (name, leaf), gradient in zip(leaves.items(), sums.gradient, strict=True):
            leaf.grad = gradient / max(sums.terms, 1) + self.fit.gamma * (leaf.detach() - self.weights[name])

    def _diverged(self, number: int, step: int, optimizer: torch.optim.Optimizer) -> TPVError:
        momentum = optimizer.param_groups[0].get("momentum", 0.0)
        bound = 2 * (1 + momentum) / max(self._curvature(), math.ulp(0.0))
        return TPVError(
            f"{_name(number)} of the retraining diverged at step {step} of {self.fit.steps}: lower lr; "
            f"at w* full-batch descent needs it below about {bound:.2g}, 2(1 + momentum) over the loss's "
            "largest curvature."
        )

    def _curvature(self) -> float:
        """2k/nK + γ with the kernel's largest eigenvalue k, from below, by power iteration."""
        train = self.train
        ntk = NTK(
            train.lin,
            train.data,
            center=train.center,
            params=lambda name, _: name in self.weights,
            dense=False,
        )
        v, k = (
            torch.randn(self.train.rows, generator=torch.Generator().manual_seed(0)).to(self.train.flat),
            0.0,
        )
        for _ in range(_POWER_ITERATIONS):
            v = ntk @ (v / v.norm().clamp(min=torch.finfo(v.dtype).tiny))
            k = v.norm().item()
        return 2 * k / self.train.outputs + self.fit.gamma


def _name(number: int) -> str:
    return f"run {number}" if number else "control run"
