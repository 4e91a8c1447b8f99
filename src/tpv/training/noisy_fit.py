"""Label noise on one network: the fit of noisy targets, as products with its factor."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest
from tpv.common.warn import warn
from tpv.model.linearization import Linearization
from tpv.ntk.jacobian import JacobianRows, gram
from tpv.ntk.krylov import Krylov
from tpv.ntk.operator import NTK
from tpv.ntk.training_set import TrainingSet, flattened
from tpv.perturbations.bound import Bound
from tpv.perturbations.factor import Factor
from tpv.results.spectrum import Spectrum
from tpv.training.fits import Fit

_BLOCK = 16
_BYTES, _DECIDED = 2**26, 0.2


class NoisyFit(Factor):
    r"""δ = Jᵀφ(K)ε for targets z* + ε: the factor A = std · Jᵀφ(K), with the eigenvectors of K as directions.

    Args:
        ntk: the kernel K of the training inputs.
        fit: how the noise is fitted.
        std: of the noise, in units of the outputs.
    """

    def __init__(self, ntk: NTK, fit: Fit, std: float) -> None:
        self.ntk, self._fit, self.std = ntk, fit, std
        self.dense, self.device = ntk.dense, ntk.device
        self.displacement_bytes = sum(ntk.lin.weights[name].nbytes for name in ntk.names)
        self._krylov = Krylov(ntk.__matmul__, ntk.train.rows, ntk.device)
        self._responses: dict[str, Tensor] = {}

    @property
    def train(self) -> TrainingSet:
        """What is fitted."""
        return self.ntk.train

    @property
    def has_steps(self) -> bool:
        """Whether the fit is made of gradient steps."""
        return self._fit.has_steps

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

    @functools.cached_property
    def directions(self) -> Tensor:
        """(nK, nK): K(x, ·) times column i is the output change at x that noise of this std along the i-th
        eigenvector causes.
        """
        u = self.ntk.eigh()[1].to(self.ntk.dtype, copy=True)
        return u.mul_((self.std * self.filter).to(self.ntk.dtype))

    def output_changes(self, lin: Linearization) -> Callable[[Any, int, int], Tensor]:
        """By the kernel between a batch and the training inputs."""
        sweep = self.ntk.sweep(lin)

        def of(batch: Any, n: int, outputs: int) -> Tensor:
            chunks = functools.partial(self.train.placed, batch, outputs, 0, self.ntk.chunk_size)
            rows = JacobianRows(sweep, chunks, n * outputs)
            return gram(rows, self.ntk.rows, self.ntk.names) @ self.directions

        return of

    def chunk_size(self, outputs: int) -> int:
        """So that their part of the kernel fits in 64 MiB."""
        return max(1, _BYTES // (self.train.rows * outputs * self.ntk.dtype.itemsize))

    def spectrum(self, values: Tensor) -> Spectrum:
        """Eigenvalues and filter, with what each direction causes here and on the training inputs."""
        k, _ = self.ntk.eigh()
        self._warn_if_decided_by_rounding(k, values)
        in_sample = (self.std * k * self.filter).square() / self.train.examples
        nonzero = self.train.dimensions  # the others are zero: what centring and padding take out
        columns = (k, self.filter, values, in_sample)
        return Spectrum(*(tuple(float(f"{x:.7g}") for x in c[:nonzero].tolist()) for c in columns))

    def _warn_if_decided_by_rounding(self, k: Tensor, values: Tensor) -> None:
        """Where the smallest eigenvalues that are fitted carry the value, the cut-off or the kernel's
        rounding decides it.
        """
        rounding = 30 * torch.finfo(self.ntk.dtype).eps
        cutoff = self.fit.cutoff
        for level, what in (
            (10 * cutoff, f"within a factor of 10 of rcond={cutoff:g}"),
            (rounding, "at the level of the kernel's rounding"),
        ):
            share = (values[k < level * k[0]].sum() / values.sum().clamp(min=math.ulp(0.0))).item()
            if share > _DECIDED:
                warn(
                    f"{100 * share:.0f} % of the label-noise TPV comes from eigenvalues {what}, which may "
                    "decide the number more than "
                    "the network does: use GradientDescent(lr, steps), Ridge(gamma) with a stronger penalty, "
                    "or a model in float64."
                )
                return

    def response(self, noise: Tensor) -> Tensor:
        """φ(K)ε for noise (nK, R), float64."""
        if not self.ntk.dense:
            return self._krylov.apply(self._filter, noise)
        u = self.ntk.eigh()[1].double()
        return u @ (self.filter.unsqueeze(1) * (u.T @ noise.double()))

    def displacements(self, noise: Tensor) -> dict[str, Tensor]:
        """std · Jᵀφ(K) times vectors (nK, R)."""
        return self.ntk.pull(self.response(self.std * noise))

    def leading(self, rank: int, generator: torch.Generator) -> Tensor:
        """About the ``rank`` largest eigenvectors of the kernel, (nK, rank)."""
        if self.ntk.dense:
            return self.ntk.eigh()[1][:, :rank].double()
        block = torch.stack([self.std * self.noise(generator) for _ in range(min(_BLOCK, rank))], 1)
        return self._krylov.largest(rank, block)[1]

    def noise(self, generator: torch.Generator) -> Tensor:
        """ε of variance 1, (nK,), float64."""
        return flattened(self.train.noise(generator)).double()

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One δ; the response to the same noise is computed once."""
        noise = self.std * self.noise(generator).unsqueeze(1)
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


@dataclass(frozen=True)
class BoundLabelNoise(Bound):
    """:class:`tpv.LabelNoise` on one network."""

    spec: object
    factor: NoisyFit

    @property
    def finite_by(self) -> str:  # type: ignore[override]
        """Retraining, which follows gradient descent only."""
        return f"Retraining{'' if self.factor.has_steps else ' with a GradientDescent fit'}"

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """δ of one draw of the noise."""
        return self.factor.draw(generator)

    def metadata(self) -> dict[str, Any]:
        """The noise and the kernel that it is fitted by."""
        return self.factor.metadata()
