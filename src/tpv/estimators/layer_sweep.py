"""What Exact and Hutchinson share: sweeps of cotangents, summed by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tpv.estimators.base import TOTAL, Problem
from tpv.jacobian import Sweep
from tpv.model.layers import groups


class LayerSweep:
    """Per-example values v ↦ Σ c_i (Jᵀv)_i², total first and then by layer."""

    def __init__(self, problem: Problem, variance: Mapping[str, Tensor], passes: int) -> None:
        self.sweep = Sweep(problem.lin, variance, passes)
        layer_of = groups(problem.layers, self.sweep.names)
        layers = list(dict.fromkeys(layer_of.values()))
        self.names = [TOTAL, *layers]
        self._membership = torch.zeros(len(self.sweep.names), len(self.names), dtype=torch.float64)
        self._membership[:, 0] = 1
        for row, name in enumerate(self.sweep.names):
            self._membership[row, 1 + layers.index(layer_of[name])] = 1

    def by_layer(self, swept: Sequence[Tensor]) -> list[Tensor]:
        """Each (N, parameters) to (N, 1 + layers), in one copy from the device."""
        return [squares @ self._membership for squares in torch.stack(list(swept)).cpu()]

    def scratch(self, batch: Any) -> int:
        """Most numbers per example that a layer writes out at a time."""
        self.sweep.prepare(batch)
        return self.sweep.scratch(batch)

    def metadata(self) -> dict[str, Any]:
        """How many weights move, the parameters without an analytic formula with the reason, and those that
        the outputs do not depend on.
        """
        sweep, unused = self.sweep, self.sweep.unused or frozenset()
        slow = {
            name: f"{route}: {route.reason}" for name, route in sweep.table.slow.items() if name not in unused
        }
        metadata: dict[str, Any] = {
            "moved_parameters": sum(sweep.lin.weights[n].numel() for n in sweep.names)
        }
        if slow:
            metadata["slow_routes"] = slow
        if unused:
            metadata["unused_parameters"] = sorted(unused)
        return metadata
