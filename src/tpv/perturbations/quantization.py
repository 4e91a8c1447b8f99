"""Rounding of weights to integers or short floats: the noise model and the actual error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.options import int_field, require_bool, require_choice
from tpv.model.linearization import Linearization
from tpv.model.matrices import channels_back, channels_first, is_matrix
from tpv.model.weights import Patterns, Weights
from tpv.perturbations import grids
from tpv.perturbations.base import Perturbation
from tpv.perturbations.bound import BoundSample, Displacements, Variances, selected


@dataclass(frozen=True, repr=False)
class Quantization(Perturbation):
    r"""Weights rounded to a grid of step Δ: noise of variance Δ²/12, or the actual error Q(w) − w.

    Steps, with range taken over a tensor, an output channel or a group of inputs:

    * symmetric integers: max|w| / (2ᵇ⁻¹ − ½) for ``range="full"``, max|w| / (2ᵇ⁻¹ − 1) for ``"restricted"``;
    * affine integers (``symmetric=False``): (max(w, 0) − min(w, 0)) / (2ᵇ − 1), zero being on the grid;
    * floats with m mantissa bits: :math:`s \cdot 2^{\max(\lfloor\log_2|w/s|\rfloor, e_\min) - m}`, with a
      scale s = 1 for bf16 and fp16, and max|w| over the largest finite number for fp8.

    What a deployed network multiplies with is rounded, whether it is trainable or frozen: weights of linear,
    convolution, recurrent, attention and embedding layers; under a parametrization (weight norm, spectral
    norm, orthogonal) the weight that it computes; and parameters outside of such layers with at least two
    axes longer than 1, such as experts, routers and matrices by hand, by their last axis, unless a part of
    their name says that they are added or scale: ``pos``, ``embed``, ``token``, ``table``, ``bias``,
    ``scale``, ``gamma`` or ``beta``. Biases and norms are not rounded. ``metadata["quantized"]`` says how
    many weights are, and which matrices are not; ``params`` restricts them. With ``granularity="global"``
    *all* parameters get one step from their common range, norms and biases included, as in the paper (arXiv
    2512.11089), which overstates a real per-channel quantizer many times over.

    Args:
        bits: b of the integers, in [1, 16].
        granularity: ``"tensor"``, ``"channel"`` (axis 0; 1 for transposed convolutions and GPT-2's
            ``Conv1D``; the first two of experts (experts, outputs, inputs)), ``"group"`` (``group_size``
            consecutive inputs of a channel) or ``"global"``.
        symmetric: integers around zero, without a zero point.
        group_size: inputs that share a step; only for ``"group"``.
        dtype: ``"int"``, ``"bf16"``, ``"fp16"``, ``"fp8_e4m3"`` or ``"fp8_e5m2"``.
        range: ``"full"`` (levels −2ᵇ⁻¹ … 2ᵇ⁻¹−1) or ``"restricted"`` (one fewer, symmetric about zero).
        error: ``"noise"`` for the expectation over quantizers, independent uniform errors with
            C = diag(Δ²/12); ``"actual"`` for this one quantizer, C = δδᵀ. A single quantizer differs from
            the expectation by 30–40 %.
        params: glob patterns of the parameters that move, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: for values outside these ranges or options that contradict each other.

    Example:
        >>> import tpv, torch
        >>> model = torch.nn.Linear(8, 4).double()
        >>> x = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> four, eight = (tpv.estimate(model, x, tpv.Quantization(bits=b)).value for b in (4, 8))
        >>> round(four / eight)  # ((2⁷ − ½) / (2³ − ½))²
        289
    """

    bits: int = 8
    granularity: str = "channel"
    symmetric: bool = True
    group_size: int | None = None
    dtype: str = "int"
    range: str = "full"
    error: str = "noise"
    params: Patterns = None

    def __post_init__(self) -> None:
        int_field(self, "bits", 1, 16)
        require_bool("Quantization", "symmetric", self.symmetric)
        require_choice(
            "Quantization", "granularity", self.granularity, ("tensor", "channel", "group", "global")
        )
        require_choice("Quantization", "dtype", self.dtype, ("int", *grids.FLOATS))
        require_choice("Quantization", "range", self.range, ("full", "restricted"))
        require_choice("Quantization", "error", self.error, ("noise", "actual"))
        if self.granularity == "group":
            int_field(self, "group_size", 1)
        elif self.group_size is not None:
            raise TPVError(
                f"Quantization(group_size={self.group_size!r}): group_size needs granularity='group'."
            )
        if self.dtype != "int" and self.bits != 8:
            raise TPVError(
                f"Quantization(bits={self.bits}, dtype={self.dtype!r}): bits is for dtype='int' only."
            )
        if self.bits == 1 and self.range == "restricted" and self.symmetric and self.dtype == "int":
            raise TPVError(
                "Quantization(bits=1, range='restricted'): a restricted range has a single level at 1 bit; "
                "use range='full'."
            )

    plain_weights = True

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """True for ``error="actual"``."""
        return self.error == "actual"

    def bind(self, lin: Linearization) -> BoundSample:
        """Draws and variances at the rounded weights, and how many these are."""
        weights = selected(lin, self.params)
        rounded = [name for name in weights if self.granularity == "global" or is_matrix(weights, name)]
        sizes = {name: p.numel() for name, p in lin.model.named_parameters() if p.is_floating_point()}
        others = [n for n in sizes if n not in rounded and lin.model.get_parameter(n).ndim > 1]
        quantized = {
            "weights": sum(sizes[name] for name in rounded),
            "of": sum(sizes.values()),
            "not": others,
        }
        bound = BoundSample(self, weights, self.sample, self.variance, self.deterministic)
        return dataclasses.replace(bound, notes={"quantized": quantized})

    def variance(self, weights: Weights) -> Variances | None:
        """Δ²/12, or None for the actual error."""
        if self.deterministic:
            return None
        variances = {}
        for name, rows, grid in self._fitted(weights):
            step = grid.step(rows)
            if step.numel() == 1:
                variances[name] = step.reshape(()).square() / 12
            elif step.shape[1:] == (1, 1):
                channels = channels_first(weights, name, weights[name])
                narrow = step.reshape(-1, *[1] * (channels.ndim - 1))
                variances[name] = channels_back(weights, name, narrow).square() / 12
            else:
                variances[name] = self._restored(weights, name, step.expand_as(rows)).square() / 12
        return variances

    def sample(self, weights: Weights, generator: torch.Generator) -> Displacements:
        """Uniform errors in ±Δ/2, or Q(w) − w."""
        delta = {}
        for name, rows, grid in self._fitted(weights):
            if self.deterministic:
                error = grid.rounded(rows) - rows
            else:
                error = (torch.rand(rows.shape, generator=generator) - 0.5).to(rows) * grid.step(rows)
            delta[name] = self._restored(weights, name, error)
        return delta

    def _fitted(self, weights: Weights) -> Iterator[tuple[str, Tensor, grids.Grid]]:
        """Each rounded parameter as rows (channels, groups, weights that share a step), with its grid."""
        if self.granularity == "global":
            rows = {name: _precise(w).reshape(1, 1, -1) for name, w in weights.items()}
            grid = self._grid(torch.cat(list(rows.values()), dim=-1)) if rows else None
            yield from ((name, row, grid) for name, row in rows.items() if grid is not None)
            return
        for name in weights:
            if is_matrix(weights, name):
                split = self._split(channels_first(weights, name, _precise(weights[name])))
                yield name, split, self._grid(split)

    def _grid(self, rows: Tensor) -> grids.Grid:
        if self.dtype != "int":
            return grids.FloatGrid.fitted(rows, self.dtype)
        if self.symmetric:
            return grids.SymmetricGrid.fitted(rows, self.bits, restricted=self.range == "restricted")
        return grids.AffineGrid.fitted(rows, self.bits)

    def _split(self, w: Tensor) -> Tensor:
        """(channels, ...) as rows; a short last group is padded with its last value, which changes no
        range.
        """
        if self.granularity == "tensor":
            return w.reshape(1, 1, -1)
        flat = w.reshape(len(w), -1)
        if self.group_size is None:
            return flat.unsqueeze(1)
        missing = -flat.shape[1] % self.group_size
        return torch.cat([flat, flat[:, -1:].expand(-1, missing)], dim=1).reshape(len(w), -1, self.group_size)

    def _restored(self, weights: Weights, name: str, rows: Tensor) -> Tensor:
        """Rows back in the parameter's own shape."""
        if self.granularity == "global":
            return rows.reshape(weights[name].shape)
        first = channels_first(weights, name, weights[name])
        if self.granularity == "group":
            rows = rows.reshape(len(first), -1)[:, : first[0].numel()]
        return channels_back(weights, name, rows.reshape(first.shape))


def _precise(w: Tensor) -> Tensor:
    return w if w.dtype == torch.float64 else w.float()
