"""Fitting noisy targets, to first order in the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest
from tpv.common.options import number_field, require_bool
from tpv.common.warn import warn
from tpv.model.batches import batch_size, batches, has_plain_rows, narrow, tensors
from tpv.model.linearization import Forward, Linearization
from tpv.model.regrouping import chosen
from tpv.model.weights import Patterns
from tpv.ntk.operator import NTK
from tpv.ntk.training_set import TrainingSet
from tpv.perturbations.base import PerturbationSpec
from tpv.perturbations.bound import selected
from tpv.training.fits import Fit
from tpv.training.noisy_fit import BoundLabelNoise, NoisyFit


@dataclass(frozen=True, eq=False, repr=False)
class LabelNoise(PerturbationSpec):
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
    work for any size. Train TPV in sample is *not a good proxy* for test TPV here, because the fit has seen
    the noise on the training inputs: use :func:`tpv.stability`, which evaluates noise on one half of them on
    the other.

    Several calls share a kernel that you make yourself and pass as ``kernel``::

        kernel = tpv.NTK(model, train)
        noise = tpv.LabelNoise(0.1, fit=tpv.Ridge(0.01), kernel=kernel)
        tpv.estimate(model, test, noise), tpv.linearity(model, test, noise)

    Args:
        std: standard deviation of the noise, in units of the outputs.
        data: the training inputs: a tensor, or a re-iterable of batches that always come in the same order.
            Only the command line leaves them out, where ``tpv report`` gives its own.
        fit: :class:`tpv.Interpolation`, :class:`tpv.Ridge` or :class:`tpv.GradientDescent`.
        center: whether loss, noise and predictions are of Πf, Π = I − 11ᵀ/K: what softmax sees. The sum of a
            classifier's logits has almost no gradient, and fitting noise on it dominates any uncentered
            pseudo-inverse. For regression with several outputs set it to False; a single output is never
            centered.
        relative: multiply ``std`` by the mean of |f*| over the training outputs, as some published
            experiments do.
        params: glob patterns of the parameters that are trained, or a function ``(name, weight) -> bool``.
        kernel: the :class:`tpv.NTK` of the training inputs, instead of ``data``, with the same ``center`` and
            ``params``. Without it each call makes its own and drops it.

    Raises:
        TPVError: if ``std`` is not a positive number or ``fit`` not a :class:`tpv.Fit`; when it is bound to a
            model, if the fit diverges, the kernel is zero, (with ``relative``) the outputs are, or ``kernel``
            is of other weights than the model's.

    Cost: that of the kernel, :class:`tpv.NTK`; then one backward pass over the training inputs for each draw.

    Source: D. Arpit, arXiv 2512.11089, for the pseudo-inverse.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(8, 1).double()
        >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
        >>> noise = tpv.LabelNoise(0.1, x, tpv.Interpolation())
        >>> round(tpv.estimate(model, x, noise).value, 12)  # std² × 9 parameters / 40 examples: least squares
        0.00225
    """

    std: float
    data: object = field(default=None, repr=False)
    fit: Fit = None  # type: ignore[assignment]  # required: None is refused with a sentence
    center: bool = True
    relative: bool = False
    params: Patterns = None
    kernel: NTK | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        number_field(self, "std", 0, open_low=True)
        if not isinstance(self.fit, Fit):
            raise TPVError(
                f"LabelNoise(fit=...) is a {type(self.fit).__name__}: give std, the training data, and a "
                "fit: "
                "tpv.Interpolation(), tpv.Ridge(gamma=...) or tpv.GradientDescent(lr=..., steps=...)."
            )
        require_bool("LabelNoise", "center", self.center)
        require_bool("LabelNoise", "relative", self.relative)
        if self.kernel is not None:
            self._check_kernel(self.kernel)

    def _check_kernel(self, kernel: object) -> None:
        if not isinstance(kernel, NTK):
            raise TPVError(
                f"LabelNoise(kernel=...) is a {type(kernel).__name__}: give tpv.NTK(model, training_data)."
            )
        if self.data is not None:
            raise TPVError("LabelNoise has both data and a kernel, which has its own: leave data out.")
        if kernel.train.center != self.center:
            raise TPVError(
                f"LabelNoise(center={self.center}) has a kernel of center={kernel.train.center}: make "
                "both the same."
            )

    @property
    def output(self) -> str:  # type: ignore[override]
        """Centered logits where the loss is centered."""
        return "centered" if self.center else "logits"

    @property
    def training_data(self) -> object:  # type: ignore[override]
        """The inputs that the noise is on."""
        return self.data if self.kernel is None else self.kernel.train.data

    @property
    def needs_training_data(self) -> bool:  # type: ignore[override]
        """Whether both ``data`` and ``kernel`` are missing."""
        return self.training_data is None

    def subset(self, keep: Sequence[bool]) -> LabelNoise:
        """The same noise on some of the training inputs, marked by their places."""
        return replace(self, data=chosen(batches(self.training_data), keep), kernel=None)

    def prepared(self, model: nn.Module, training_data: object, forward: Forward | None = None) -> LabelNoise:
        """The same noise with the kernel that several calls on this model can share, of its own training
        inputs or else of these.
        """
        if self.kernel is not None:
            return self
        data = training_data if self.data is None else self.data
        kernel = NTK(model, data, center=self.center, params=self.params, forward=forward)
        return replace(self, data=None, kernel=kernel)

    def bind(self, lin: Linearization) -> BoundLabelNoise:
        """The fit on this network, with the kernel of this spec or a new one.

        Raises:
            TPVError: without training inputs; for a kernel of other weights or parameters.
        """
        if self.needs_training_data:
            raise TPVError(
                f"{self!r} has no training inputs that its noise is on: give data=train_data. (tpv report "
                "gives its own to a LabelNoise "
                "by itself, and not as a part of a sum.)"
            )
        kernel = self.kernel
        if kernel is None:
            kernel = NTK(lin, self.data, center=self.center, params=self.params)
        else:
            kernel.check_belongs(lin, list(selected(lin, self.params)))
        _warn_about_duplicates(kernel.train)
        return BoundLabelNoise(self, NoisyFit(kernel, self.fit, self.scale(kernel.train)))

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


def _warn_about_duplicates(train: TrainingSet) -> None:
    """Two copies of an input get different noise, which no fit can follow."""
    seen: set[str] = set()
    for batch, _ in train.read():
        used, size = train.lin.used(batch), batch_size(batch)
        if has_plain_rows(used, size):
            return
        seen |= {digest(*tensors(narrow(used, i, i + 1, size))) for i in range(size)}
    if copies := train.examples - len(seen):
        warn(
            f"{copies} of the {train.examples} training examples are copies of others: their kernel is "
            "singular, and a fit can only follow "
            "the mean of the noise on them."
        )
