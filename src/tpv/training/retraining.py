"""Retraining on noisy targets: Monte Carlo over networks that are trained again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import weights_digest
from tpv.common.format import described
from tpv.common.options import int_field, require_bool
from tpv.model.linearization import Linearization
from tpv.model.weights import Patterns
from tpv.ntk.training_set import TrainingSet
from tpv.perturbations.base import PerturbationSpec
from tpv.perturbations.bound import selected
from tpv.training.bound_retraining import BoundRetraining
from tpv.training.fits import GradientDescent
from tpv.training.label_noise import LabelNoise
from tpv.training.loop import Trainer
from tpv.training.optimizers import OptimizerFactory


@dataclass(frozen=True, eq=False, repr=False)
class Retraining(PerturbationSpec):
    r"""δ = w − w* of a network trained again, from w*, on targets with noise, by gradient steps where
    :class:`tpv.LabelNoise` uses the kernel.

    .. math:: \min_w \frac{1}{nK}\|z(w) - (z^* + \varepsilon)\|^2 + \frac{\gamma}{2}\|w - w^*\|^2,
        \qquad \varepsilon \sim N(0, \sigma^2 I)

    in evaluation mode and in the data's order, so that ε is all that differs between runs; it is the ε that
    the same generator gives to :class:`tpv.LabelNoise`. By default :func:`tpv.estimate` measures the finite
    TPV of ``runs`` trained networks, and :func:`tpv.linearity` compares it with the first-order TPV of the
    same runs.

    A run without noise, the control, is trained as well. When it fits z* it stays where it is. When it fits
    other targets it moves as far as w* was from convergence, and most of what the runs measure is then this
    drift and not variance: ``metadata["control"]`` has its value, and the TPV around it as ``"variance"``; a
    warning reports a drift of more than a tenth.

    Finished runs are shared within a call, and between calls if ``folder`` is given.

    Args:
        noise: σ, the training data and the fit, which must be :class:`tpv.GradientDescent`.
        runs: networks that :func:`tpv.estimate` and :func:`tpv.stability` train, unless another
            estimator is asked for;
            :func:`tpv.linearity` trains its ``draws``.
        optimizer: a function from parameters to a ``torch.optim.Optimizer``, instead of ``SGD(lr, momentum)``
            of the fit, whose steps and gamma still apply. Its weight decay causes drift too.
        batch_size: examples in a step, consecutive and in order; None for all.
        targets: (n, ...), what to fit instead of the network's own outputs z*, of their shape and in the
            data's order.
        folder: where finished runs are saved, for other calls and so that an interrupted series continues.
        adaptive: allow optimizers such as Adam, which move the weights about as far whatever σ is.

    Raises:
        TPVError: for options outside these ranges; when it is bound to a model, for targets that do not fit
            its outputs, an optimizer that is refused, a folder that cannot be written, data in a changing
            order, or a run that diverges.

    Cost: for each run and the control, ``steps`` forward+backward passes over the examples of a step; nothing
        for runs that are in ``folder``.

    Source: D. Arpit, arXiv 2512.11089, with the control added.

    Example:
        >>> import torch, tpv
        >>> layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers).double()
        >>> train, test = (torch.randn(n, 4, dtype=torch.float64) for n in (20, 30))
        >>> noise = tpv.LabelNoise(0.01, train, tpv.GradientDescent(lr=0.1, steps=5))
        >>> result = tpv.estimate(model, test, tpv.Retraining(noise, runs=2))
        >>> result.metadata["estimator"], len(result.metadata["runs"])
        ('MonteCarlo(draws=2)', 2)
        >>> result.metadata["control"]["value"] < 1e-20
        True
    """

    noise: LabelNoise
    runs: int = 5
    optimizer: OptimizerFactory | None = None
    batch_size: int | None = None
    targets: Tensor | None = field(default=None, repr=False)
    folder: str | os.PathLike[str] | None = field(default=None, repr=False)
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.noise, LabelNoise):
            raise TPVError(f"Retraining(noise={self.noise!r}): give a tpv.LabelNoise with the training data.")
        if not isinstance(self.noise.fit, GradientDescent):
            raise TPVError(
                f"Retraining cannot follow {self.noise.fit!r}, which has no steps: give LabelNoise a "
                "GradientDescent(lr, steps)."
            )
        if self.noise.fit.lr is None and self.optimizer is None:
            raise TPVError(
                "Retraining needs GradientDescent(lr=...) as a number: "
                "tpv.estimate(model, data, noise).metadata['fit'] names the one that LabelNoise takes."
            )
        int_field(self, "runs", 1)
        if self.batch_size is not None:
            int_field(self, "batch_size", 1)
        require_bool("Retraining", "adaptive", self.adaptive)
        if self.optimizer is not None and not callable(self.optimizer):
            raise TPVError(
                f"Retraining(optimizer=...) is a {type(self.optimizer).__name__}: "
                "give a function, such as lambda parameters: SGD(parameters, lr=0.1)."
            )
        _check_targets(self.targets)
        if not isinstance(self.folder, str | os.PathLike | None):
            raise TPVError(f"Retraining(folder={self.folder!r}): folder must be a path.")

    def __repr__(self) -> str:
        """As any perturbation's, and whether there are targets."""
        text = described(self)
        return text if self.targets is None else f"{text[:-1]}, targets=...)"

    @property
    def params(self) -> Patterns:  # type: ignore[override]
        """Those of the noise."""
        return self.noise.params

    @property
    def output(self) -> str:  # type: ignore[override]
        """That of the noise."""
        return self.noise.output

    @property
    def training_data(self) -> object:  # type: ignore[override]
        """The training inputs."""
        return self.noise.training_data

    def subset(self, keep: Sequence[bool]) -> Retraining:
        """The same training on some of the training inputs, marked by their places."""
        targets = (
            None if self.targets is None else self.targets[torch.tensor(keep, device=self.targets.device)]
        )
        return replace(self, noise=self.noise.subset(keep), targets=targets)

    def bind(self, lin: Linearization) -> BoundRetraining:
        """A trainer of this network, without any run yet.

        Raises:
            TPVError: for targets of another shape than the outputs, an optimizer that is refused, or a folder
                that cannot be written.
        """
        weights_before = weights_digest(lin.model)
        assert isinstance(self.noise.fit, GradientDescent)
        train = TrainingSet(lin, self.noise.training_data, center=self.noise.center)
        weights = selected(lin, self.params)
        trainer = Trainer(train, weights, self.noise.fit, self.optimizer, self.batch_size, self.adaptive)
        settings = (self.noise.std, self.noise.relative, weights_before)
        return BoundRetraining(
            self, trainer, self.noise.scale(train), self.targets, self.folder, settings, self.runs
        )


def _check_targets(targets: object) -> None:
    if targets is None:
        return
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TPVError(
            f"Retraining(targets=...) is {kind}: give a floating-point tensor of the outputs' shape, such as "
            "one-hot classes."
        )
    if not targets.isfinite().all():
        raise TPVError("Retraining(targets=...) holds NaN or infinity.")
