"""What a sweep returns of per-example gradients: weighted squares, or the gradients themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from tpv.common.reads import numbers
from tpv.jacobian.formulas.base import LayerCall, Variance, gram_is_cheaper
from tpv.jacobian.formulas.factors import squared_norm

Part = tuple[LayerCall, str]
"""A call that uses a parameter, and the parameter's name in its layer."""


class Reducer(ABC):
    """Takes a layer call's (input, output gradient) to one result per example, (n, ...)."""

    @abstractmethod
    def of_call(self, layer: LayerCall, g: Tensor, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Of parameters that this call alone uses; ``names``: local name → name."""

    @abstractmethod
    def of_factors(self, name: str, parts: list[tuple[LayerCall, str, Tensor]]) -> Tensor | None:
        """Of a parameter that several calls use, from each call's output gradient; None where summing the
        calls' gradients is cheaper.
        """

    @abstractmethod
    def of_gradient(self, name: str, gradient: Tensor) -> Tensor:
        """Of a parameter's gradients (n, *shape)."""

    @abstractmethod
    def zero(self, name: str, n: int) -> Tensor:
        """Of a parameter that the outputs do not depend on."""

    @abstractmethod
    def size(self, name: str, value: Tensor) -> Tensor:
        """(n,) weighted squares Σᵢ c_i g_i² of a result, for comparisons."""

    @abstractmethod
    def groups(self, names: Collection[str]) -> Iterable[Collection[str]]:
        """The parameters whose gradients may be written out at the same time."""


class Squares(Reducer):
    r"""(n,) :math:`\sum_i c_i g_i^2` of each parameter.

    Args:
        variance: c of each parameter.
        weights: the parameters' values.
        passes: how many cotangents each batch will see.
    """

    def __init__(self, variance: Mapping[str, Tensor], weights: Mapping[str, Tensor], passes: int) -> None:
        self._weights, self._passes = weights, passes
        self._variances = {name: Variance(c, weights[name].ndim) for name, c in variance.items()}
        single = [name for name, c in variance.items() if c.numel() == 1]
        self._factor = dict(zip(single, numbers([variance[name] for name in single]), strict=True))

    def of_call(self, layer: LayerCall, g: Tensor, names: Mapping[str, str]) -> dict[str, Tensor]:
        squares = layer.squares(g, {local: self._variances[name] for local, name in names.items()})
        return {names[local]: self._weighted(names[local], square) for local, square in squares.items()}

    def of_factors(self, name: str, parts: list[tuple[LayerCall, str, Tensor]]) -> Tensor | None:
        rows = self._variances[name].rows
        if rows is None or not self._factored(name, [(layer, local) for layer, local, _ in parts]):
            return None
        return self._weighted(name, squared_norm([layer.factors(g).scaled(rows) for layer, _, g in parts]))

    def of_gradient(self, name: str, gradient: Tensor) -> Tensor:
        return self._weighted(name, self._variances[name].square(gradient))

    def _weighted(self, name: str, square: Tensor) -> Tensor:
        """A sum of squares (n,) times the variance where that is a single number."""
        return square.double() * self._factor.get(name, 1.0)

    def zero(self, name: str, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.float64, device=self._weights[name].device)

    def size(self, name: str, value: Tensor) -> Tensor:
        return value

    def groups(self, names: Collection[str]) -> Iterable[Collection[str]]:
        return [[name] for name in names]

    def scratch(self, uses: Mapping[str, list[Part]]) -> int:
        """Most numbers per example that a layer writes out at a time; ``uses``: parameter → its calls."""
        largest = [layer.scratch for parts in uses.values() for layer, _ in parts]
        written_out = [
            name
            for name, parts in uses.items()
            if self._variances[name].rows is None or (len(parts) > 1 and not self._factored(name, parts))
        ]
        return max([*largest, *(self._weights[name].numel() for name in written_out)], default=0)

    def _factored(self, name: str, parts: list[Part]) -> bool:
        """Whether outer products are cheaper than the gradient of a parameter that several calls use."""
        if self._variances[name].rows is None or not all(
            layer.positions and local == "weight" for layer, local in parts
        ):
            return False
        rows, columns = self._weights[name].shape
        return gram_is_cheaper(sum(layer.positions for layer, _ in parts), columns, rows, self._passes)


class Gradients(Reducer):
    """The gradients (n, *shape) themselves. ``squares`` weighs them in comparisons."""

    def __init__(self, squares: Squares, weights: Mapping[str, Tensor]) -> None:
        self._squares, self._weights = squares, weights

    def of_call(self, layer: LayerCall, g: Tensor, names: Mapping[str, str]) -> dict[str, Tensor]:
        return {names[local]: gradient for local, gradient in layer.gradients(g, list(names)).items()}

    def of_factors(self, name: str, parts: list[tuple[LayerCall, str, Tensor]]) -> Tensor | None:
        return None

    def of_gradient(self, name: str, gradient: Tensor) -> Tensor:
        return gradient

    def zero(self, name: str, n: int) -> Tensor:
        return self._weights[name].new_zeros(1).expand(n, *self._weights[name].shape)

    def size(self, name: str, value: Tensor) -> Tensor:
        return self._squares.of_gradient(name, value)

    def groups(self, names: Collection[str]) -> Iterable[Collection[str]]:
        return [names] if names else []
