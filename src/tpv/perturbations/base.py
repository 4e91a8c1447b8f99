"""What a perturbation is: hyper-parameters of a distribution of the displacement δ of the weights."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tpv.common.compare import same_content
from tpv.common.errors import TPVError
from tpv.common.format import described
from tpv.model.linearization import Forward, Linearization
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.bound import (
    Bound,
    BoundSample,
    BoundSum,
    Displacements,
    Variances,
    selected,
)


class PerturbationSpec(ABC):
    r"""Every perturbation: a frozen dataclass of hyper-parameters, the same before and after use.

    What belongs to a model is made by :meth:`bind`, and dropped after the call that asked for it. Specs
    compare, hash and pickle by their hyper-parameters. To write one of your own, subclass
    :class:`Perturbation` or :class:`DiagonalPerturbation`.

    Attributes:
        params: glob patterns of the parameter names that move, or a function ``(name, weight) -> bool``; None
            moves all.
        deterministic: True if every draw is the same δ (then C = δδᵀ).
        output: the output space of the predictions unless the caller of :func:`tpv.estimate` gives another.
        training_data: the inputs that δ was fitted on, where there are such: :func:`tpv.stability` then
            cross-fits.
        needs_training_data: whether it still lacks the inputs that δ is fitted on.
        plain_weights: whether it moves frozen parameters too, and parametrized weights themselves.
    """

    params: Patterns = None
    deterministic: bool = False
    output: str = "logits"
    training_data: object = None
    needs_training_data: bool = False
    plain_weights: bool = False

    @abstractmethod
    def bind(self, lin: Linearization) -> Bound:
        """The perturbation of one model at its trained weights.

        Raises:
            TPVError: if the model and the perturbation do not fit together.
        """

    def subset(self, keep: Sequence[bool]) -> PerturbationSpec:
        """The same perturbation fitted on some of its training inputs, marked by their places.

        Raises:
            TPVError: if it has none.
        """
        raise TPVError(f"{self!r} is not fitted on training inputs, so there is no subset of them.")

    def prepared(
        self, model: nn.Module, training_data: object, forward: Forward | None = None
    ) -> PerturbationSpec:
        """The same perturbation, with what several calls on this model can share made once; where
        ``needs_training_data``, fitted on these inputs. By default there is nothing to share.
        """
        return self

    def __repr__(self) -> str:
        """The options that differ from their defaults, and the first one always."""
        return described(self)

    def __eq__(self, other: object) -> bool:
        """Whether it is of the same type with the same hyper-parameters, tensors by their contents."""
        if type(self) is not type(other):
            return NotImplemented
        return same_content(_hyper_parameters(self), _hyper_parameters(other))

    def __hash__(self) -> int:
        return hash(repr(self))

    def __add__(self, other: object) -> PerturbationSpec:
        """The sum of independent zero-mean perturbations."""
        if not isinstance(other, PerturbationSpec):
            return NotImplemented
        return Sum((*_parts(self), *_parts(other)))


class Perturbation(PerturbationSpec):
    r"""A random displacement δ of the weights that is drawn, :math:`C = E[\delta\delta^\top]`.

    Subclass it as a frozen dataclass of hyper-parameters and write :meth:`sample`; linearized and
    finite estimates then use the same draws. Write :meth:`variance` too (or subclass
    :class:`DiagonalPerturbation`) if the entries of δ are independent with mean zero: this unlocks the
    exact sweep and the split by layer. A dataclass field ``params: Patterns = None`` lets users choose what
    moves.

    Example:
        >>> import torch, tpv
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class RelativeNoise(tpv.Perturbation):
        ...     scale: float = 0.01
        ...     def sample(self, weights, generator):
        ...         noise = {k: torch.randn(w.shape, generator=generator) for k, w in weights.items()}
        ...         return {k: self.scale * w.abs() * noise[k] for k, w in weights.items()}
        >>> model = torch.nn.Linear(4, 2).double()
        >>> tpv.estimate(model, torch.ones(3, 4).double(), RelativeNoise()).value > 0
        True
    """

    @abstractmethod
    def sample(self, weights: Weights, generator: torch.Generator) -> Displacements:
        """One draw of δ: parameter name → tensor of the parameter's shape, on any device.

        Args:
            weights: the trained weights w* that ``params`` selects. Names left out of the result do not move.
            generator: a CPU generator, the only source of randomness.
        """

    def variance(self, weights: Weights) -> Variances | None:
        """Diagonal of C: parameter name → variances, broadcastable to the parameter's shape.

        None (the default) if δ is not a vector of independent zero-mean entries.
        """
        return None

    def bind(self, lin: Linearization) -> Bound:
        """Draws and variances at the selected weights, checked."""
        weights = selected(lin, self.params)
        return BoundSample(self, weights, self.sample, self.variance, self.deterministic)


class DiagonalPerturbation(Perturbation):
    """A perturbation defined by :meth:`variance`; draws are normal."""

    @abstractmethod
    def variance(self, weights: Weights) -> Variances:
        """Diagonal of C: parameter name → variances, broadcastable to the parameter's shape."""

    def sample(self, weights: Weights, generator: torch.Generator) -> Displacements:
        """δ ~ N(0, diag(variance))."""
        return {
            name: variance.sqrt().to(weights[name])
            * torch.randn(weights[name].shape, generator=generator).to(weights[name])
            for name, variance in self.variance(weights).items()
        }


@dataclass(frozen=True, eq=False, repr=False)
class Sum(PerturbationSpec):
    """``a + b``: independent zero-mean perturbations at once; each keeps its own ``params``.

    Raises:
        TPVError: if a part is deterministic, for its mean is not zero.
    """

    parts: tuple[PerturbationSpec, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.deterministic:
                raise TPVError(
                    f"{part!r} is a fixed displacement, and only independent zero-mean perturbations can be "
                    "added."
                )

    def bind(self, lin: Linearization) -> Bound:
        """All parts, bound to the same model."""
        return BoundSum(self, tuple(part.bind(lin) for part in self.parts))

    @property
    def plain_weights(self) -> bool:  # type: ignore[override]
        """Whether all parts ask for them."""
        return all(part.plain_weights for part in self.parts)

    @property
    def training_data(self) -> object:  # type: ignore[override]
        """That of the first part that has some."""
        return next((p.training_data for p in self.parts if p.training_data is not None), None)

    def subset(self, keep: Sequence[bool]) -> PerturbationSpec:
        """Refused: the parts would need different estimators.

        Raises:
            TPVError: always.
        """
        fitted = next((part for part in self.parts if part.training_data is not None), self)
        raise TPVError(
            f"stability cannot cross-fit a sum: ask for its {type(fitted).__name__} by itself, and for "
            "the other parts by themselves."
        )

    @property
    def output(self) -> str:  # type: ignore[override]
        """What the parts agree on, else the logits."""
        wanted = {part.output for part in self.parts}
        return wanted.pop() if len(wanted) == 1 else "logits"

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _parts(perturbation: PerturbationSpec) -> tuple[PerturbationSpec, ...]:
    return perturbation.parts if isinstance(perturbation, Sum) else (perturbation,)


def _hyper_parameters(spec: object) -> dict[str, object]:
    if dataclasses.is_dataclass(spec):
        return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return vars(spec)
