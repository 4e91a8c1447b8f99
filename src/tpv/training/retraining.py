"""Really refitting noisy targets, by training the network again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.format import described
from tpv.common.options import require_int
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.base import Displacements, Perturbation
from tpv.training.fits import GradientDescent
from tpv.training.label_noise import LabelNoise
from tpv.training.loop import OnStep
from tpv.training.optimizers import OptimizerFactory
from tpv.training.session import Held, Session
from tpv.training.store import Store


@dataclass(frozen=True, eq=False, repr=False)
class Retraining(Perturbation):
    r"""δ = w − w* of a network trained again, from w*, on targets with noise: what :class:`tpv.LabelNoise`
    has in closed form.

    .. math:: \min_w \frac{1}{nK}\|z(w) - (z^* + \varepsilon)\|^2 + \frac{\gamma}{2}\|w - w^*\|^2,
        \qquad \varepsilon \sim N(0, \sigma^2 I)

    in evaluation mode and in the data's order, so that ε is all that differs between runs; it is the ε that
    the same generator gives to the closed form. By default :func:`tpv.estimate` measures the finite TPV of
    ``runs`` trained networks, and :func:`tpv.linearity` compares it with the first order of the same runs.

    A run without noise, the control, comes with them. Fitting z* it does not move. Fitting other targets it
    moves as far as w* had still to go, and most of what the runs measure is then this drift and not variance:
    ``metadata["control"]`` has its value, and the TPV around it as ``"variance"``; a warning comes where the
    drift is more than a tenth.

    Finished runs are kept with this object, for the next question about the same model and data.

    Args:
        noise: σ, the training data and the way to fit, which must be :class:`tpv.GradientDescent`.
        runs: networks that :func:`tpv.estimate` and :func:`tpv.stability` train, unless they are given an
            estimator;
            :func:`tpv.linearity` trains its ``draws``.
        optimizer: a function from parameters to a ``torch.optim.Optimizer``, instead of ``SGD(lr, momentum)``
            of the fit, whose steps and gamma stay. Its weight decay is drift too.
        batch_size: examples in a step, consecutive and in order; None for all.
        targets: (n, ...), what to fit instead of the network's own outputs z*, of their shape and in the
            data's order.
        folder: where finished runs are kept, so that an interrupted series goes on where it stopped.
        adaptive: let through optimizers such as Adam, which move the weights about as far whatever σ is.
        on_step: called with (run, step, steps, mean squared error of the step's examples before it); run 0 is
            the control. ``tpv.training.ProgressBar()`` draws bars.

    Raises:
        TPVError: for options outside these ranges; when it meets a model, for targets that do not fit its
            outputs, an optimizer that is refused, a folder that cannot be written, data in a changing order,
            or a run that diverges.

    Cost: for each run and the control, ``steps`` forward+backward passes over the examples of a step; nothing
        for runs that are kept.

    Source: D. Arpit, arXiv 2512.11089, with the control added.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
        >>> train, test = (torch.randn(n, 4, dtype=torch.float64) for n in (20, 30))
        >>> law = tpv.LabelNoise(0.01, train, tpv.GradientDescent(lr=0.1, steps=5))
        >>> result = tpv.estimate(model, test, tpv.Retraining(law, runs=2))
        >>> result.metadata["estimator"], len(result.metadata["runs"]), result.metadata["control"]["value"] < 1e-20
        ('MonteCarlo(draws=2)', 2, True)
    """

    noise: LabelNoise
    runs: int = 5
    optimizer: OptimizerFactory | None = None
    batch_size: int | None = None
    targets: Tensor | None = field(default=None, repr=False)
    folder: str | os.PathLike[str] | None = field(default=None, repr=False)
    adaptive: bool = False
    on_step: OnStep | None = field(default=None, repr=False)
    _held: Held = field(init=False, repr=False)

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
                "tpv.estimate(model, data, noise).metadata['fit'] names the one that the closed form takes."
            )
        require_int("Retraining", "runs", self.runs, 1)
        if self.batch_size is not None:
            require_int("Retraining", "batch_size", self.batch_size, 1)
        if self.optimizer is not None and not callable(self.optimizer):
            raise TPVError(
                f"Retraining(optimizer=...) is a {type(self.optimizer).__name__}: "
                "give a function, such as lambda parameters: SGD(parameters, lr=0.1)."
            )
        _check_targets(self.targets)
        if not isinstance(self.folder, str | os.PathLike | None):
            raise TPVError(f"Retraining(folder={self.folder!r}): folder must be a path.")
        object.__setattr__(self, "_held", Held(Store(self.folder)))

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
    def data(self) -> object:
        """The training inputs."""
        return self.noise.data

    def subset(self, keep: Sequence[bool]) -> Retraining:
        """The same training on some of the training inputs, marked by their places."""
        targets = (
            None if self.targets is None else self.targets[torch.tensor(keep, device=self.targets.device)]
        )
        return replace(self, noise=self.noise.subset(keep), targets=targets)

    def sample(self, at: Weights, generator: torch.Generator) -> Displacements:
        """δ of one run."""
        return self._session(at).run(generator).delta

    def control(self, at: Weights) -> Displacements:
        """δ of the run without noise."""
        return self._session(at).control().delta

    def metadata(self, at: Weights) -> dict[str, object]:
        """σ in units of the outputs, and the mean squared errors and seconds of the runs."""
        return self._session(at).metadata()

    def _session(self, at: Weights) -> Session:
        if self._held.session is None or not self._held.session.belongs(at):
            self._held.session = Session(self, at, self._held.store)
        return self._held.session


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
