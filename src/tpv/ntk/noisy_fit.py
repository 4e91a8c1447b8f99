"""A way of fitting noisy targets that has met a network and its training inputs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tpv._errors import TPVError
from tpv.ntk.fits import Fit
from tpv.ntk.krylov import apply_filter
from tpv.ntk.operator import NTK
from tpv.training import TrainingSet


class NoisyFit:
    """δ = Jᵀφ(K)ε for targets z* + ε.

    Args:
        ntk: the kernel of the training inputs.
        fit: how the noise is fitted.
        std: of the noise, in units of the outputs.
    """

    def __init__(self, ntk: NTK, fit: Fit, std: float) -> None:
        self.ntk, self.fit, self.std = ntk, fit.resolved(ntk.dtype), std

    @property
    def train(self) -> TrainingSet:
        """What is fitted."""
        return self.ntk.train

    @functools.cached_property
    def filter(self) -> Tensor:
        """φ of the kernel's eigenvalues, falling eigenvalues first."""
        k, _ = self.ntk.eigh()
        if k[0] <= 0:
            raise TPVError(
                "the kernel of the training data is zero: no trainable parameter moves these outputs. The network is dead there, "
                "its outputs are constant, or params= selects what they do not depend on."
            )
        return self.fit.filter(k, self.train.outputs, k[0].item())

    def response(self, noise: Tensor) -> Tensor:
        """φ(K)ε for noise (nK, R), float64."""
        if self.ntk.dense:
            _, u = self.ntk.eigh()
            return u @ (self.filter.unsqueeze(1) * (u.T @ noise.double()))
        return apply_filter(self.ntk.__matmul__, noise, self._filter_of_ritz_values)[0]

    def _filter_of_ritz_values(self, k: Tensor) -> Tensor:
        return self.fit.filter(k, self.train.outputs, k.max().item())

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One δ."""
        noise = self.std * torch.cat([e.reshape(-1) for e in self.train.noise(generator)])
        return {name: d[0] for name, d in self.ntk.pull(self.response(noise.unsqueeze(1))).items()}

    @property
    def directions(self) -> Tensor:
        """(nK, nK): K(x, ·) times column i is what a unit of noise along the i-th eigenvector moves at x."""
        _, u = self.ntk.eigh()
        return u * (self.std * self.filter)
