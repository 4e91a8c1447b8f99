"""Recorded calls, and the output gradients that a backward pass brings them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from tpv.jacobian.fallback.local import LocalCall
from tpv.jacobian.formulas.base import LayerCall, widened


@dataclass(eq=False)
class Call:
    """A recorded call with its layer's formula, its parameters by local name, and the outputs that lead on.

    ``plain``: one row for each example, planned, in a graph in which rows keep their order.
    """

    layer: LayerCall
    names: dict[str, str]
    edges: list[GradientEdge]
    shapes: list[torch.Size]
    axes: list[int]
    plain: bool

    def joined(self, found: list[Tensor | None], n: int) -> Tensor:
        """A layer's output gradient; those of several outputs flattened and joined by example."""
        known = next(g for g in found if g is not None)
        gradients = [
            known.new_zeros(shape) if g is None else g for g, shape in zip(found, self.shapes, strict=True)
        ]
        gradients = [widened(g).movedim(axis, 0) for g, axis in zip(gradients, self.axes, strict=True)]
        return (
            torch.cat([g.reshape(n, -1) for g in gradients], dim=1)
            if isinstance(self.layer, LocalCall)
            else gradients[0]
        )


class Arrivals:
    """Output gradients as a backward pass brings them; a call's are handed on when they are complete."""

    def __init__(self, calls: list[Call], hand_on: Callable[[Call, list[Tensor | None]], None]) -> None:
        self._found: dict[Call, list[Tensor | None]] = {call: [None] * len(call.edges) for call in calls}
        self._missing = {call: len(call.edges) for call in calls}
        self._hand_on = hand_on

    def hooked(self, call: Call, position: int, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        """As a hook of the node that made the output."""
        self.add(call, position, gradients[output])

    def add(self, call: Call, position: int, g: Tensor | None) -> None:
        self._found[call][position] = g
        self._missing[call] -= 1
        if self._missing[call] == 0:
            self._pass_on(call)

    def hand_on_rest(self) -> None:
        """What never became complete, because no gradient reaches some of the outputs."""
        for call in list(self._found):
            self._pass_on(call)

    def _pass_on(self, call: Call) -> None:
        found = self._found.pop(call)
        if any(g is not None for g in found):
            self._hand_on(call, found)
