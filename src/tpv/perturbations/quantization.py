"""Rounding of weights to integers or short floats: the noise model and the actual error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.options import int_field, require_bool, require_choice
from tpv.model.types import TRANSPOSED_LINEAR, type_name
from tpv.model.weights import Patterns, Weights
from tpv.perturbations import grids
from tpv.perturbations.base import Perturbation
from tpv.perturbations.bound import Displacements, Variances

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase,
)  # fmt: skip
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, repr=False)
class Quantization(Perturbation):
    r"""Weights rounded to a grid of step Δ: noise of variance Δ²/12, or the actual error Q(w) − w.

    Steps, with range taken over a tensor, an output channel or a group of inputs:

    * symmetric integers: max|w| / (2ᵇ⁻¹ − ½) for ``range="full"``, max|w| / (2ᵇ⁻¹ − 1) for ``"restricted"``;
    * affine integers (``symmetric=False``): (max(w, 0) − min(w, 0)) / (2ᵇ − 1), zero being on the grid;
    * floats with m mantissa bits: :math:`s \cdot 2^{\max(\lfloor\log_2|w/s|\rfloor, e_\min) - m}`, with a
      scale s = 1 for bf16 and fp16, and max|w| over the largest finite number for fp8.

    Only weights of linear, convolution and embedding layers are rounded, unless ``granularity`` is
    ``"global"``: one step from the range of *all* parameters, norms and biases included, as in the
    paper (arXiv 2512.11089). It overstates a real per-channel quantizer many times over.

    Args:
        bits: b of the integers, in [1, 16].
        granularity: ``"tensor"``, ``"channel"`` (axis 0; 1 for transposed convolutions and GPT-2's
            ``Conv1D``), ``"group"`` (``group_size`` consecutive inputs of a channel) or ``"global"``.
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

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """True for ``error="actual"``."""
        return self.error == "actual"

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
                axis = _channel_axis(weights, name)
                variances[name] = (
                    step.reshape([-1 if i == axis else 1 for i in range(weights[name].ndim)]).square() / 12
                )
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
            if _is_weight(weights, name):
                split = self._split(_precise(weights[name]).movedim(_channel_axis(weights, name), 0))
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
        axis = 0 if self.granularity == "global" else _channel_axis(weights, name)
        first = weights[name].movedim(axis, 0)
        if self.granularity == "group":
            rows = rows.reshape(len(first), -1)[:, : first[0].numel()]
        return rows.reshape(first.shape).movedim(0, axis)


def _is_weight(weights: Weights, name: str) -> bool:
    module = weights.module(name)
    known = isinstance(module, _LAYERS) or type_name(module) == TRANSPOSED_LINEAR
    return known and "weight" in name.rpartition(".")[2] and weights[name].ndim > 1


def _channel_axis(weights: Weights, name: str) -> int:
    module = weights.module(name)
    return 1 if isinstance(module, _TRANSPOSED) or type_name(module) == TRANSPOSED_LINEAR else 0


def _precise(w: Tensor) -> Tensor:
    return w if w.dtype == torch.float64 else w.float()
