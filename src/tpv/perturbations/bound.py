"""A perturbation at a model's trained weights: what ``bind`` makes, for the length of one call."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean, what_it_is
from tpv.common.reads import moved_together, non_finite, numbers
from tpv.model.linearization import Linearization
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.factor import Factor

Displacements = Mapping[str, Tensor]
"""Parameter name → δ, of the parameter's shape."""
Variances = Mapping[str, Tensor]
"""Parameter name → variances, broadcastable to the parameter's shape."""
T = TypeVar("T")


class Bound(ABC):
    """A perturbation of one model at w*. It lives for one call and is dropped after it.

    Estimators see nothing else of a perturbation; :class:`tpv.Auto` chooses by these attributes.

    Attributes:
        spec: the hyper-parameters that were bound, for messages.
        deterministic: whether every draw is the same δ.
        factor: C = AAᵀ as products with A, where δ comes from linear algebra; else None.
        finite_draws: the number of networks to evaluate at w* + δ where δ is too expensive, or not small
            enough, for anything else; else None.
        finite_by: what measures its finite TPV, for a network that is not linear in its weights at this size;
            empty where every estimate already is finite.
    """

    spec: object
    deterministic: bool = False
    factor: Factor | None = None
    finite_draws: int | None = None
    finite_by: str = "MonteCarlo"

    @abstractmethod
    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A draw of δ, on the weights' device and in their dtype.

        Raises:
            TPVError: for unknown names, wrong shapes or non-finite values.
        """

    def variance(self) -> dict[str, Tensor] | None:
        """Diagonal of C, on the weights' device; None (the default) where the entries of δ are not
        independent with mean zero.

        Raises:
            TPVError: for unknown names, shapes that do not broadcast, negative or non-finite values.
        """
        return None

    def control(self) -> dict[str, Tensor] | None:
        """δ of a draw without its randomness, where the mean of δ may not be zero; else None."""
        return None

    def metadata(self) -> dict[str, Any]:
        """What a result's metadata should say of this perturbation of this model."""
        return {}


@dataclass(frozen=True)
class BoundSample(Bound):
    """A perturbation defined by ``sample`` and ``variance``, whose values are checked at each call.

    Args:
        spec: the perturbation.
        weights: the parameters that its ``params`` selects.
        draw: its ``sample``.
        variances: its ``variance``.
        notes: its metadata.
    """

    spec: object
    weights: Weights
    draw: Callable[[Weights, torch.Generator], Displacements]
    variances: Callable[[Weights], Variances | None]
    deterministic: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """The notes."""
        return dict(self.notes)

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """δ with its names, shapes and values checked, and 0 in the padding rows of embeddings."""
        drawn = users_code(self.weights, f"{self.spec!r}.sample", self.draw, self.weights, generator)
        delta = self._tensors("sample", drawn)
        for name, value in delta.items():
            if not value.is_floating_point():
                raise self._not_real("sample", name, value)
        for name, value in delta.items():
            w = self._known(name)
            if value.shape != w.shape:
                raise TPVError(
                    f"{self.spec!r}.sample gave {name!r} the shape {tuple(value.shape)}; the parameter has "
                    f"{tuple(w.shape)}."
                )
        if (broken := non_finite(delta)) is not None:
            raise TPVError(f"{self.spec!r} displaces {broken!r} by NaN or infinity.")
        at = self.weights
        return {name: at.without_padding(name, value.to(at[name])) for name, value in delta.items()}

    def variance(self) -> dict[str, Tensor] | None:
        """The variances with their names, shapes and values checked."""
        variances = users_code(self.weights, f"{self.spec!r}.variance", self.variances, self.weights)
        if variances is None:
            return None
        for name, value in self._tensors("variance", variances).items():
            if value.is_complex():
                raise self._not_real("variance", name, value)
            if not _broadcasts(value, self._known(name)):
                raise TPVError(
                    f"{self.spec!r}.variance gave {name!r} the shape {tuple(value.shape)}, which does not "
                    f"broadcast to {tuple(self.weights[name].shape)}."
                )
        if (broken := _no_variance(variances)) is not None:
            raise TPVError(f"{self.spec!r} gives {broken!r} a variance that is negative, NaN or infinite.")
        at = self.weights
        moved = moved_together(variances, {name: at[name].device for name in variances})
        return {name: at.without_padding(name, value) for name, value in moved.items()}

    def _tensors(self, method: str, values: object) -> dict[str, Tensor]:
        who = f"{self.spec!r}.{method} must give a mapping from parameter names to tensors"
        if not isinstance(values, Mapping):
            raise TPVError(f"{who}, got {what_it_is(values)}.")
        if not values:
            raise TPVError(f"{self.spec!r} moves no parameter of this model.")
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise TPVError(f"{who}, and gave {name!r} {what_it_is(value)}.")
        return dict(values)

    def _not_real(self, method: str, name: str, value: Tensor) -> TPVError:
        return TPVError(
            f"{self.spec!r}.{method} gave {name!r} the dtype {value.dtype}: make it real floating-point "
            "numbers."
        )

    def _known(self, name: str) -> Tensor:
        if name not in self.weights:
            raise TPVError(
                f"{self.spec!r} moves {name!r}, which is not a selected trainable "
                f"parameter.{did_you_mean(name, self.weights)}"
            )
        return self.weights[name]


@dataclass(frozen=True)
class BoundSum(Bound):
    """Independent zero-mean perturbations at once."""

    spec: object
    parts: tuple[Bound, ...]

    @property
    def finite_by(self) -> str:  # type: ignore[override]
        """That of the first part that needs another one than MonteCarlo."""
        return next((p.finite_by for p in self.parts if p.finite_by != Bound.finite_by), Bound.finite_by)

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Sum of one draw of each part."""
        return _added(part.sample(generator) for part in self.parts)

    def variance(self) -> dict[str, Tensor] | None:
        """Sum of the parts' variances, None if one has none."""
        variances = [part.variance() for part in self.parts]
        return None if None in variances else _added(v for v in variances if v is not None)

    def control(self) -> dict[str, Tensor] | None:
        """Sum of the controls of the parts that have one."""
        controls = [delta for part in self.parts if (delta := part.control()) is not None]
        return _added(controls) if controls else None

    def metadata(self) -> dict[str, Any]:
        """What all parts say; where they differ in a key, a list of what each says."""
        values: dict[str, list[Any]] = {}
        for part in self.parts:
            for key, value in part.metadata().items():
                if value not in values.setdefault(key, []):
                    values[key].append(value)
        return {key: several if several[1:] else several[0] for key, several in values.items()}


def selected(lin: Linearization, params: Patterns) -> Weights:
    """The weights that a perturbation's ``params`` selects."""
    return users_code(lin.weights, "params=", lin.weights.select, params)


def users_code(weights: Weights, what: str, function: Callable[..., T], *arguments: object) -> T:
    """Calls ``params=``, ``sample`` or ``variance``: the one place where a perturbation's own code runs.

    Raises:
        TPVError: before the code writes to the model's weights or buffers.
    """
    with weights.watch.callback(what):
        return function(*arguments)


def _broadcasts(value: Tensor, w: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(value.shape, w.shape) == w.shape)
    except RuntimeError:
        return False


def _no_variance(values: Variances) -> str | None:
    """The first that is somewhere negative, NaN or infinite."""
    extremes = {name: value.aminmax() for name, value in values.items() if value.numel()}
    smallest, largest = numbers([e[0] for e in extremes.values()]), numbers([e[1] for e in extremes.values()])
    rows = zip(extremes, smallest, largest, strict=True)
    return next((name for name, low, high in rows if not 0 <= low <= high < math.inf), None)


def _added(terms: Iterable[Displacements]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for term in terms:
        for name, value in term.items():
            total[name] = total[name] + value.to(total[name]) if name in total else value
    return total
