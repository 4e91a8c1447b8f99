"""Covariances as a factor times its transpose, C = AAᵀ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tpv.model.linearization import Linearization
from tpv.results.spectrum import Spectrum


class Factor(ABC):
    r"""δ = Aε with ε ~ N(0, I): what estimators need of a covariance C = AAᵀ that has no useful diagonal.

    Attributes:
        dense: whether all of A can be used at a time, so that nothing needs to be sampled.
        device: where its vectors are.
        displacement_bytes: memory that one δ takes.
    """

    dense: bool
    device: torch.device
    displacement_bytes: int

    @abstractmethod
    def noise(self, generator: torch.Generator) -> Tensor:
        """A draw of ε, (m,), float64."""

    @abstractmethod
    def displacements(self, noise: Tensor) -> dict[str, Tensor]:
        """A times R vectors (m, R): parameter name → (R, *shape)."""

    @abstractmethod
    def leading(self, rank: int, generator: torch.Generator) -> Tensor:
        """Orthonormal vectors (m, up to ``rank``) along which A is largest, approximately."""

    @abstractmethod
    def output_changes(self, lin: Linearization) -> Callable[[Any, int, int], Tensor]:
        """Of a model: (batch, n examples, K outputs of each) ↦ J A U, (nK, m), with an orthogonal U that
        :meth:`spectrum` knows. Only if ``dense``.
        """

    @abstractmethod
    def chunk_size(self, outputs: int) -> int:
        """How many examples of so many outputs :meth:`output_changes` takes at a time."""

    @abstractmethod
    def spectrum(self, values: Tensor) -> Spectrum:
        """The directions U with the part (m,) of TPV that each causes. Warns where rounding decides them."""
