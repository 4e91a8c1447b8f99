"""What to compare a criterion with: sizes of weights, and chance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpv.common.options import require_int
from tpv.pruning.channels.tracing import torch_pruning


@dataclass(frozen=True)
class Magnitude:
    """Torch-Pruning's ``MagnitudeImportance``: Σ|w|ᵖ of a channel in each layer of its group, averaged, in
    units of the group's mean.

    Args:
        p: 1 or 2, of the norm.

    Raises:
        TPVError: for other values.

    Example:
        >>> import torch, tpv
        >>> from tpv.pruning import Magnitude
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> tpv.prune(model, torch.randn(64, 8), "params=0.5", criterion=Magnitude(p=1), steps=1).model[0]
        Linear(in_features=8, out_features=7, bias=True)
    """

    p: int = 2

    def __post_init__(self) -> None:
        require_int("Magnitude", "p", self.p, 1, 2)

    def __call__(self, group: Any) -> Tensor:
        """Scores of a ``tp.dependency.Group``."""
        found: Tensor = torch_pruning().importance.MagnitudeImportance(p=self.p)(group)
        return found


@dataclass(frozen=True)
class Random:
    """Uniform random numbers, the same at every call for a group of so many channels.

    Args:
        seed: at least 0.

    Raises:
        TPVError: for other values.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        require_int("Random", "seed", self.seed, 0)

    def __call__(self, group: Any) -> Tensor:
        """Scores of a ``tp.dependency.Group``."""
        root, channels = group[0].dep.target.module, len(group[0].idxs)
        name = next(name for name, module in group._DG.model.named_modules() if module is root)
        seed = hashlib.sha256(f"{self.seed} {name} {channels}".encode()).digest()
        return torch.rand(
            channels,
            generator=torch.Generator().manual_seed(int.from_bytes(seed[:7], "big")),
            dtype=torch.float64,
        )
