"""What a perturbation is: a law for the displacement δ of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean
from tpv.common.format import described
from tpv.model.weights import Patterns, Weights

Displacements = Mapping[str, Tensor]
Variances = Mapping[str, Tensor]


class Perturbation(ABC):
    r"""A random displacement δ of the weights, :math:`C = E[\delta\delta^\top]`.

    Subclass it as a frozen dataclass of hyper-parameters and write :meth:`sample`; linearized and
    finite estimates then use the same draws. Write :meth:`variance` too (or subclass
    :class:`DiagonalPerturbation`) if the entries of δ are independent with mean zero: this unlocks the
    exact sweep and the split by layer.

    Attributes:
        params: glob patterns of the parameter names that move, or a function ``(name, weight) -> bool``; None
            moves all. A dataclass field ``params: Patterns = None`` lets users set it.
        deterministic: True if :meth:`sample` always returns the same δ (then C = δδᵀ).
        output: what of the predictions counts unless the caller of :func:`tpv.estimate` says otherwise.

    Example:
        >>> import torch, tpv
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class RelativeNoise(tpv.Perturbation):
        ...     scale: float = 0.01
        ...     def sample(self, at, generator):
        ...         return {k: self.scale * w.abs() * torch.randn(w.shape, generator=generator) for k, w in at.items()}
        >>> model = torch.nn.Linear(4, 2).double()
        >>> tpv.estimate(model, torch.ones(3, 4).double(), RelativeNoise()).value > 0
        True
    """

    params: Patterns = None
    deterministic: bool = False
    output: str = "logits"

    @abstractmethod
    def sample(self, at: Weights, generator: torch.Generator) -> Displacements:
        """One draw of δ: parameter name → tensor of the parameter's shape, on any device.

        Args:
            at: the weights w* that ``params`` selects. Names left out of the result do not move.
            generator: a CPU generator, the only source of randomness.
        """

    def variance(self, at: Weights) -> Variances | None:
        """Diagonal of C: parameter name → variances, broadcastable to the parameter's shape.

        None (the default) if δ is not a vector of independent zero-mean entries.
        """
        return None

    def control(self, at: Weights) -> Displacements | None:
        """δ of a draw without its randomness, for perturbations whose mean may not be zero; None (the
        default) if there is none.
        """
        return None

    def metadata(self, at: Weights) -> dict[str, Any]:
        """What a result's metadata should say of the perturbation, once it has met these weights."""
        return {}

    def __repr__(self) -> str:
        """The options that differ from their defaults, and the first one always."""
        return described(self)

    def __add__(self, other: object) -> Perturbation:
        """The sum of independent zero-mean perturbations."""
        if not isinstance(other, Perturbation):
            return NotImplemented
        return Sum((*_parts(self), *_parts(other)))


class DiagonalPerturbation(Perturbation):
    """A perturbation given by :meth:`variance` alone; draws are normal."""

    @abstractmethod
    def variance(self, at: Weights) -> Variances:
        """Diagonal of C: parameter name → variances, broadcastable to the parameter's shape."""

    def sample(self, at: Weights, generator: torch.Generator) -> Displacements:
        """δ ~ N(0, diag(variance))."""
        return {
            name: variance.sqrt().to(at[name]) * torch.randn(at[name].shape, generator=generator).to(at[name])
            for name, variance in self.variance(at).items()
        }


@dataclass(frozen=True, repr=False)
class Sum(Perturbation):
    """``a + b``: independent zero-mean perturbations at once; each keeps its own ``params``.

    Raises:
        TPVError: if a part is deterministic, for its mean is not zero.
    """

    parts: tuple[Perturbation, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.deterministic:
                raise TPVError(
                    f"{part!r} is a fixed displacement, and only independent zero-mean perturbations can be "
                    "added."
                )

    def sample(self, at: Weights, generator: torch.Generator) -> Displacements:
        """Sum of one draw of each part."""
        return _added(part.sample(at.select(part.params), generator) for part in self.parts)

    def variance(self, at: Weights) -> Variances | None:
        """Sum of the parts' variances, None if one has none."""
        found = [part.variance(at.select(part.params)) for part in self.parts]
        return None if None in found else _added(v for v in found if v is not None)

    def control(self, at: Weights) -> Displacements | None:
        """Sum of the controls that the parts have."""
        found = [part.control(at.select(part.params)) for part in self.parts]
        return None if all(c is None for c in found) else _added(c for c in found if c is not None)

    def metadata(self, at: Weights) -> dict[str, Any]:
        """What all parts say."""
        return {
            key: value for part in self.parts for key, value in part.metadata(at.select(part.params)).items()
        }

    @property
    def output(self) -> str:  # type: ignore[override]
        """What the parts agree on, else the logits."""
        wanted = {part.output for part in self.parts}
        return wanted.pop() if len(wanted) == 1 else "logits"

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def _parts(perturbation: Perturbation) -> tuple[Perturbation, ...]:
    return perturbation.parts if isinstance(perturbation, Sum) else (perturbation,)


def _added(terms: Any) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for term in terms:
        for name, value in term.items():
            total[name] = total[name] + value.to(total[name]) if name in total else value
    return total


def displacement(
    perturbation: Perturbation, weights: Weights, generator: torch.Generator
) -> dict[str, Tensor]:
    """A checked draw of δ, on the weights' device and in their dtype.

    Raises:
        TPVError: for unknown names, wrong shapes or non-finite values.
    """
    at = weights.select(perturbation.params)
    return _checked(perturbation, at, perturbation.sample(at, generator))


def control(perturbation: Perturbation, weights: Weights) -> dict[str, Tensor] | None:
    """The control's δ, checked as a draw is; None for a perturbation that has none.

    Raises:
        TPVError: as :func:`displacement`.
    """
    at = weights.select(perturbation.params)
    delta = perturbation.control(at)
    return None if delta is None else _checked(perturbation, at, delta)


def _checked(perturbation: Perturbation, at: Weights, found: Displacements) -> dict[str, Tensor]:
    delta = dict(found)
    for name, value in delta.items():
        w = _known(perturbation, at, name)
        if value.shape != w.shape:
            raise TPVError(
                f"{perturbation!r}.sample gave {name!r} the shape {tuple(value.shape)}; the parameter has "
                f"{tuple(w.shape)}."
            )
        if not value.isfinite().all():
            raise TPVError(f"{perturbation!r} displaces {name!r} by NaN or infinity.")
    if not delta:
        raise TPVError(f"{perturbation!r} moves no parameter of this model.")
    return {name: at.without_padding(name, value.to(at[name])) for name, value in delta.items()}


def diagonal(perturbation: Perturbation, weights: Weights) -> dict[str, Tensor] | None:
    """Checked variances on the weights' device, None for a perturbation that has none.

    Raises:
        TPVError: for unknown names, shapes that do not broadcast, negative or non-finite values.
    """
    at = weights.select(perturbation.params)
    found = perturbation.variance(at)
    if found is None:
        return None
    for name, value in found.items():
        w = _known(perturbation, at, name)
        try:
            fits = torch.broadcast_shapes(value.shape, w.shape) == w.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise TPVError(
                f"{perturbation!r}.variance gave {name!r} the shape {tuple(value.shape)}, which does not "
                f"broadcast to {tuple(w.shape)}."
            )
        if not (value.isfinite() & (value >= 0)).all():
            raise TPVError(f"{perturbation!r} gives {name!r} a variance that is negative, NaN or infinite.")
    if not found:
        raise TPVError(f"{perturbation!r} moves no parameter of this model.")
    return {name: at.without_padding(name, value.to(weights[name].device)) for name, value in found.items()}


def _known(perturbation: Perturbation, at: Weights, name: str) -> Tensor:
    if name not in at:
        raise TPVError(
            f"{perturbation!r} moves {name!r}, which is not a selected trainable "
            f"parameter.{did_you_mean(name, at)}"
        )
    return at[name]
