"""A way of fitting noisy targets that has met a network and its training inputs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest
from tpv.ntk.krylov import Krylov
from tpv.ntk.operator import NTK
from tpv.ntk.training_set import TrainingSet, flattened
from tpv.training.fits import Fit

_BLOCK = 16


class NoisyFit:
    """δ = Jᵀφ(K)ε for targets z* + ε.

    Args:
        ntk: the kernel of the training inputs.
        fit: how the noise is fitted.
        std: of the noise, in units of the outputs.
    """

    def __init__(self, ntk: NTK, fit: Fit, std: float) -> None:
        self.ntk, self._fit, self.std = ntk, fit, std
        self._krylov = Krylov(ntk.__matmul__, ntk.train.rows, ntk.device)
        self._responses: dict[str, Tensor] = {}

    @property
    def train(self) -> TrainingSet:
        """What is fitted."""
        return self.ntk.train

    @property
    def fit(self) -> Fit:
        """The fit with the defaults that it took on this kernel, as far as that is known yet."""
        k = self.ntk.eigh()[0] if self.ntk.dense else self._krylov.ritz()[0]
        return self._resolved(k) if len(k) else self._fit

    def _resolved(self, k: Tensor) -> Fit:
        return self._fit.resolved(self.ntk.dtype, self.train.outputs, k[0].item())

    @functools.cached_property
    def filter(self) -> Tensor:
        """φ of the eigenvalues of a kernel that is written out, largest first."""
        return self._filter(self.ntk.eigh()[0])

    def _filter(self, k: Tensor) -> Tensor:
        if k[0] <= 0:
            raise TPVError(
                "the kernel of the training data is zero: no trainable parameter moves these outputs. The "
                "network is dead there, "
                "its outputs are constant, or params= selects what they do not depend on."
            )
        return self._resolved(k).filter(k, self.train.outputs, k[0].item())

    @property
    def directions(self) -> Tensor:
        """(nK, nK): K(x, ·) times column i is what noise of this std along the i-th eigenvector moves at
        x.
        """
        return (
            self.ntk.eigh()[1].to(self.ntk.dtype, copy=True).mul_((self.std * self.filter).to(self.ntk.dtype))
        )

    def response(self, noise: Tensor) -> Tensor:
        """φ(K)ε for noise (nK, R), float64."""
        if not self.ntk.dense:
            return self._krylov.apply(self._filter, noise)
        u = self.ntk.eigh()[1].double()
        return u @ (self.filter.unsqueeze(1) * (u.T @ noise.double()))

    def largest(self, rank: int, generator: torch.Generator) -> Tensor:
        """About the ``rank`` largest eigenvectors, (nK, rank)."""
        if self.ntk.dense:
            return self.ntk.eigh()[1][:, :rank].double()
        block = torch.stack([self.noise(generator) for _ in range(min(_BLOCK, rank))], 1)
        return self._krylov.largest(rank, block)[1]

    def noise(self, generator: torch.Generator) -> Tensor:
        """ε, (nK,), float64."""
        return self.std * flattened(self.train.noise(generator)).double()

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One δ; what was found for the same noise is kept."""
        noise = self.noise(generator).unsqueeze(1)
        key = digest(noise)
        if key not in self._responses:
            self._responses[key] = self.response(noise)
        return {name: d[0] for name, d in self.ntk.pull(self._responses[key]).items()}

    def metadata(self) -> dict[str, Any]:
        """The noise and the kernel that it is fitted by."""
        return {
            "noise_std": self.std,
            "train_examples": self.train.examples,
            "train_outputs": self.train.outputs,
            "noise_dimensions": self.train.dimensions,
            "kernel": repr(self.ntk),
            "kernel_bytes": self.ntk.dense_bytes if self.ntk.dense else 0,
            "fit": repr(self.fit),
        }
