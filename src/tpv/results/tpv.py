"""The number, its uncertainties, the layers that cause it, and where it came from."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean
from tpv.common.format import percent, plus_minus, table
from tpv.common.stats import Estimate, Moments
from tpv.results.serialization import JSONResult
from tpv.results.spectrum import Spectrum

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_SHOWN = 10


@dataclass(frozen=True, repr=False)
class TPVResult(JSONResult):
    """What :func:`tpv.estimate` returns.

    Attributes:
        value: TPV, in squared units of the outputs (or in ``metadata["unit"]``): summed over outputs,
            averaged over examples.
        stderr: standard error of ``value`` from the sampling of examples and of probes or draws.
        mc_stderr: Monte-Carlo standard error, from probes or draws with the data fixed; 0 where nothing was
            sampled, nan where there is a single draw.
        n_examples: number of examples.
        layers: module name → its part of ``value``. The parts sum to ``value``. Empty where there is no
            such split: ``no_layers`` then gives the reason.
        no_layers: the reason for a missing split, else None.
        draws: per-draw averages over examples where all examples share the draws, else empty.
        draw_std: standard deviation of the TPV of a single draw about ``value``, with the data fixed; nan
            where it was not computed.
        spectrum: the directions of the kernel, for :class:`tpv.LabelNoise` by :class:`tpv.Exact`; else None.
        pointwise: (n_examples,) float64, the value of every example in the data's order, averaged over draws:
            its mean is ``value``. None unless ``pointwise=True`` was given. Saved in JSON as a list of
            numbers, and left out of comparisons by ``==``.
        metadata: perturbation, estimator, seed, output and its unit, numbers of outputs and parameters, chunk
            size, device, seconds, versions; ``slow_routes`` (parameters without an analytic per-layer
            formula) and ``unused_parameters`` where there were any.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()
        >>> result = tpv.estimate(model, torch.ones(5, 3).double(), tpv.Isotropic(0.1))
        >>> tpv.TPVResult.from_json(result.to_json()) == result
        True
    """

    value: float
    stderr: float
    mc_stderr: float
    n_examples: int
    layers: dict[str, Estimate] = field(default_factory=dict)
    no_layers: str | None = None
    draws: tuple[float, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    draw_std: float = math.nan
    spectrum: Spectrum | None = None
    pointwise: Tensor | None = field(default=None, compare=False)

    @classmethod
    def from_moments(
        cls, moments: Moments, no_layers: str | None, metadata: dict[str, Any], **extra_fields: Any
    ) -> TPVResult:
        """The result of sums whose first quantity is the total and whose others are layers."""
        means = moments.result()
        total, *layers = means.estimates().items()
        draws = tuple(means.draw_means[:, 0].tolist())
        extra_fields.setdefault("draw_std", statistics.stdev(draws) if len(draws) > 1 else math.nan)
        value = total[1]
        return cls(
            *(value.value, value.stderr, value.mc_stderr),
            means.count,
            dict(layers),
            no_layers,
            draws,
            metadata=metadata,
            **extra_fields,
        )

    @property
    def estimate(self) -> Estimate:
        """The value with its errors, as one object."""
        return Estimate(self.value, self.stderr, self.mc_stderr)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of ``value`` from ``stderr``: for other examples and other probes or draws."""
        return self.estimate.interval(level)

    @property
    def leverage(self) -> float:
        """For label noise, degrees of freedom over dimensions of the noise: the share of its own noise that
        the fit reproduces; nan where not computed.
        """
        dimensions = self.metadata.get("noise_dimensions")
        return self.spectrum.degrees_of_freedom / dimensions if self.spectrum and dimensions else math.nan

    def ranked(self) -> list[tuple[str, Estimate]]:
        """Layers by falling value."""
        return sorted(self.layers.items(), key=lambda item: -item[1].value)

    def share(self, layer: str) -> float:
        """A layer's part of the value, in [0, 1].

        Raises:
            TPVError: for a name that is not in ``layers``.
        """
        if layer not in self.layers:
            there = f"there are {', '.join(self.layers)}" if self.layers else f"no split: {self.no_layers}"
            raise TPVError(f"no layer {layer!r}: {there}.{did_you_mean(layer, self.layers)}")
        return self.layers[layer].value / self.value if self.value else float("nan")

    def __str__(self) -> str:
        meta, unit = self.metadata, self.metadata.get("unit")
        lines = [
            f"TPV {plus_minus(self.value, self.stderr)}{f' {unit}' if unit else ''}   "
            f"(Monte-Carlo standard error {self.mc_stderr:.2g})",
            *([f"one draw: ± {self.draw_std:.2g}"] if math.isfinite(self.draw_std) else []),
            str(meta.get("perturbation", "")),
            *([_quantized(meta["quantized"])] if "quantized" in meta else []),
            f"{self.n_examples} examples, {meta.get('estimator', '')}, seed {meta.get('seed', '')}",
            "",
            *([str(self.spectrum), ""] if self.spectrum else []),
            *([_control(meta["control"]), ""] if "control" in meta else []),
        ]
        split = table(("layer", "TPV", "share"), self._rows()) if self.layers else None
        return "\n".join([*lines, split or f"no split by layer: {self.no_layers}"])

    def _rows(self) -> list[tuple[str, str, str]]:
        """Layers by falling value, the last ones in one row."""
        ranked = self.ranked()
        rows = [(n, plus_minus(e.value, e.stderr), percent(self.share(n))) for n, e in ranked[:_SHOWN]]
        if rest := ranked[_SHOWN:]:
            remaining = sum(e.value for _, e in rest)
            share = remaining / self.value if self.value else math.nan
            rows.append((f"{len(rest)} more", f"{remaining:.3g}", percent(share)))
        return rows

    __repr__ = __str__

    def to_pandas(self) -> pandas.DataFrame:
        """One row per layer: value, stderr, mc_stderr, share. Needs ``pip install 'tpv[pandas]'``."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install 'tpv[pandas]'") from error
        rows = {
            n: {"value": e.value, "stderr": e.stderr, "mc_stderr": e.mc_stderr, "share": self.share(n)}
            for n, e in self.layers.items()
        }
        frame = pd.DataFrame.from_dict(
            rows, orient="index", columns=["value", "stderr", "mc_stderr", "share"]
        )
        return frame.rename_axis("layer")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Bars of the layers with their standard errors, in the model's order. Needs
        ``pip install 'tpv[plot]'``.

        Args:
            ax: where to draw; by default a new figure.

        Raises:
            TPVError: if there is no split by layer, with the reason.
        """
        from tpv.plots.layers import plot_layers

        if not self.layers:
            hint = " Plot result.spectrum instead." if self.spectrum else ""
            raise TPVError(f"there are no layers to plot: {self.no_layers}.{hint}")
        return plot_layers(self.layers, ax)


def _quantized(counts: dict[str, Any] | list[dict[str, Any]]) -> str:
    """Of one perturbation, or of several in a sum."""
    parts = counts if isinstance(counts, list) else [counts]
    rounded = " and ".join(f"{part['weights']:,}" for part in parts)
    skipped = [name for name in parts[0]["not"] if all(name in part["not"] for part in parts)]
    names = f"; not {', '.join(skipped[:3])}" + (" and others" if skipped[3:] else "") if skipped else ""
    return f"rounds {rounded} of {parts[0]['of']:,} weights{names}"


def _control(control: dict[str, float]) -> str:
    around = f"; the variance around it is {control['variance']:.3g}" if "variance" in control else ""
    return f"without noise the predictions change by {control['value']:.3g} (control run){around}"
