"""Refitting noisy targets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest, weights_digest
from tpv.common.options import require_number
from tpv.model.batches import batch_size, batches, has_plain_rows, inputs, narrow, tensors
from tpv.model.regrouping import chosen
from tpv.model.weights import Patterns, Weights
from tpv.ntk.operator import NTK
from tpv.ntk.training_set import TrainingSet
from tpv.perturbations.base import Displacements, Perturbation
from tpv.training.fits import Fit
from tpv.training.noisy_fit import NoisyFit


@dataclass(frozen=True, eq=False, repr=False)
class LabelNoise(Perturbation):
    r"""The displacement of the weights when targets f* + ε, ε ~ N(0, std²I), are fitted from w* on.

    The loss is ``mse_loss`` (mean over n examples and K outputs) + (γ/2)‖w − w*‖². To first order
    :math:`\delta = J^\top \varphi(\mathcal K)\,\varepsilon` with the kernel :math:`\mathcal K = JJ^\top` of
    the training inputs (:class:`tpv.NTK`) and the filter φ of the fit, so that
    :math:`C = \mathrm{std}^2\, J^\top \varphi(\mathcal K)^2 J` and, over m inputs with the kernel
    :math:`\mathcal K_{te}` between them and the training inputs, eigenvectors u and eigenvalues k of
    :math:`\mathcal K`

    .. math:: \mathrm{TPV} = \frac{\mathrm{std}^2}{m} \sum_i \varphi_i^2 \|\mathcal K_{te} u_i\|^2
        \qquad\text{and on the training inputs}\qquad \frac{\mathrm{std}^2}{n}\sum_i (k_i\varphi_i)^2 .

    :class:`tpv.Exact` evaluates this sum, with its spectrum, where the kernel can be written out; draws of δ
    work for any size. In sample the training inputs *mislead*, for the fit has seen their noise: use
    :func:`tpv.stability`, which reads the noise of one part on the other.

    Args:
        std: standard deviation of the noise, in units of the outputs.
        data: the training inputs: a tensor, or a re-iterable of batches that always come in the same order.
            Only the command line leaves them out, where ``tpv report`` gives its own.
        fit: :class:`tpv.Interpolation`, :class:`tpv.Ridge` or :class:`tpv.GradientDescent`.
        center: whether loss, noise and read-out see Πf, Π = I − 11ᵀ/K: what softmax sees. The sum of a
            classifier's logits has almost no gradient, and fitting noise on it dominates any uncentred
            pseudo-inverse. For regression with several outputs set it to False; a single output is never
            centred.
        relative: multiply ``std`` by the mean of |f*| over the training outputs, as some published
            experiments do.
        params: glob patterns of the parameters that are trained, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: if ``std`` is not a positive number or ``fit`` not a way to fit; when it meets a model, if
            the fit diverges, the kernel is zero, or (with ``relative``) the outputs are.

    Cost: that of the kernel, :class:`tpv.NTK`; then one backward pass over the training inputs for each draw.

    Source: D. Arpit, arXiv 2512.11089, for the pseudo-inverse.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(8, 1).double()
        >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
        >>> law = tpv.LabelNoise(0.1, x, tpv.Interpolation())
        >>> round(tpv.estimate(model, x, law).value, 12)  # std² × 9 parameters / 40 examples: least squares
        0.00225
    """

    std: float
    data: object = field(default=None, repr=False)
    fit: Fit = None  # type: ignore[assignment]  # no fit is refused: every field after ``data`` must have a default
    center: bool = True
    relative: bool = False
    params: Patterns = None
    _met: dict[Any, NoisyFit] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_number("LabelNoise", "std", self.std, 0, open_low=True)
        if not isinstance(self.fit, Fit):
            raise TPVError(
                f"LabelNoise(fit=...) is a {type(self.fit).__name__}: give std, the training data, and a "
                "fit: "
                "tpv.Interpolation(), tpv.Ridge(gamma=...) or tpv.GradientDescent(lr=..., steps=...)."
            )

    @property
    def output(self) -> str:  # type: ignore[override]
        """Centred logits where the loss is centred."""
        return "centered" if self.center else "logits"

    def subset(self, keep: Sequence[bool]) -> LabelNoise:
        """The same noise on some of the training inputs, marked by their places."""
        return replace(self, data=chosen(batches(self.data), keep))

    def scale(self, train: TrainingSet) -> float:
        """The standard deviation of the noise, in units of the outputs.

        Raises:
            TPVError: with ``relative``, if all outputs are zero.
        """
        if self.relative and train.magnitude == 0:
            raise TPVError(
                "relative=True scales the noise by the mean of |f*|, and all training outputs are 0: give an "
                "absolute std."
            )
        return float(self.std) * (train.magnitude if self.relative else 1)

    def meet(self, at: Weights) -> NoisyFit:
        """The fit on this network, kept until anything about the network changes.

        Raises:
            TPVError: without data.
        """
        if self.data is None:
            raise TPVError(
                f"{self!r} has no training inputs that its noise is on: give data=train_data. (tpv report "
                "gives its own to a LabelNoise "
                "by itself, and not as a part of a sum.)"
            )
        lin = at.linearization
        parameters = [lin.model.get_parameter(name) for name in at]
        key = (
            lin.model,
            lin.forward,
            lin.output.select,
            *parameters,
            parameters[0].device,
            weights_digest(lin.model),
        )
        if key not in self._met:
            self._met.clear()
            train = TrainingSet(lin, self.data, center=self.center)
            _warn_about_duplicates(train)
            self._met[key] = NoisyFit(NTK.of(train, list(at)), self.fit, self.scale(train))
        return self._met[key]

    def sample(self, at: Weights, generator: torch.Generator) -> Displacements:
        """δ of one draw of the noise."""
        return self.meet(at).draw(generator)

    def metadata(self, at: Weights) -> dict[str, Any]:
        """The noise and the kernel that it is fitted by."""
        return self.meet(at).metadata()


def _warn_about_duplicates(train: TrainingSet) -> None:
    """Two copies of an input get different noise, which no fit can follow."""
    seen: set[str] = set()
    for batch in train.data:
        used, size = batch if train.lin.custom_forward else inputs(batch), batch_size(batch)
        if has_plain_rows(used, size):
            return
        seen |= {digest(*tensors(narrow(used, i, i + 1, size))) for i in range(size)}
    if copies := train.examples - len(seen):
        warnings.warn(
            f"{copies} of the {train.examples} training examples are copies of others: their kernel is "
            "singular, and a fit can only follow "
            "the mean of the noise on them.",
            stacklevel=2,
        )
