"""Which directions of the kernel carry the noise."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpv.results.serialization import JSONResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Spectrum(JSONResult):
    r"""The terms of the label-noise TPV, one for each eigenvector of the training kernel, largest eigenvalue
    first.

    Attributes:
        eigenvalues: k of 𝒦 = JJᵀ.
        filter: φ(k); kφ is the share of the noise along the direction that the fit reproduces.
        value: each direction's part of TPV on the inputs that it is evaluated on.
        in_sample: each direction's part of TPV on the training inputs, std² (kφ)² / n.
    """

    eigenvalues: tuple[float, ...]
    filter: tuple[float, ...]
    value: tuple[float, ...]
    in_sample: tuple[float, ...]

    @property
    def degrees_of_freedom(self) -> float:
        """Σ kφ(k), the trace of the linear map from noise to fitted noise."""
        return math.fsum(self.fitted_share)

    @property
    def fitted_share(self) -> tuple[float, ...]:
        """kφ(k), the share of the noise along each direction that the fit reproduces: 0 none, 1 all."""
        return tuple(k * f for k, f in zip(self.eigenvalues, self.filter, strict=True))

    @property
    def cumulative(self) -> tuple[float, ...]:
        """The share of ``value`` that the directions up to each one carry; nan if it is 0."""
        total = math.fsum(self.value)
        return tuple(v / total if total > 0 else math.nan for v in itertools.accumulate(self.value))

    @property
    def alpha(self) -> tuple[float, ...]:
        """αᵢ, value over in_sample for each direction; nan where nothing is fitted."""
        return tuple(v / t if t > 0 else math.nan for v, t in zip(self.value, self.in_sample, strict=True))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Eigenvalues, on a logarithmic axis, and on a second axis the share of the noise that the fit
        reproduces and the cumulative share of the value.

        Needs ``pip install 'tpv[plot]'``.

        Args:
            ax: where to draw; by default a new figure.

        Returns:
            The axes of the eigenvalues.
        """
        from tpv.plots.spectrum import plot_spectrum

        return plot_spectrum(self.eigenvalues, self.fitted_share, self.cumulative, ax)

    def __str__(self) -> str:
        half = bisect.bisect_left(self.cumulative, 0.5) + 1
        return (
            f"{len(self.eigenvalues)} directions, {self.degrees_of_freedom:.3g} degrees of freedom; "
            f"the {half} largest eigenvalues carry half of the value"
        )

    __repr__ = __str__
