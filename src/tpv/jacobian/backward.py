"""One backward pass that stops at the outputs of calls and hands each its output gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tpv.jacobian.calls import Call
from tpv.jacobian.routes.graph import Graph


class GradientCollector:
    """Collects output gradients during a backward pass; a call's are handed on when they are complete."""

    def __init__(self, calls: Sequence[Call], hand_on: Callable[[Call, list[Tensor | None]], None]) -> None:
        self._gradients: dict[Call, list[Tensor | None]] = {call: [None] * len(call.edges) for call in calls}
        self._missing = {call: len(call.edges) for call in calls}
        self._hand_on = hand_on

    def hook(self, call: Call, position: int, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        """A pre-hook of the node that made the output."""
        self.add(call, position, gradients[output])

    def add(self, call: Call, position: int, g: Tensor | None) -> None:
        self._gradients[call][position] = g
        self._missing[call] -= 1
        if self._missing[call] == 0:
            self._finish(call)

    def finish_all(self) -> None:
        """Hand on what never became complete, because no gradient reaches some of the outputs."""
        for call in list(self._gradients):
            self._finish(call)

    def _finish(self, call: Call) -> None:
        gradients = self._gradients.pop(call)
        if any(g is not None for g in gradients):
            self._hand_on(call, gradients)


def backward(
    outputs: Tensor,
    graph: Graph,
    v: Tensor,
    calls: Sequence[Call],
    receive: Callable[[Call, Tensor], None],
    *,
    retain: bool,
) -> None:
    """Hand each call its output gradient the moment it is complete: during the pass where it goes on below,
    else at its end.

    Args:
        outputs, graph: of the model.
        v: cotangents, like the outputs.
        calls: whose output gradients are wanted.
        receive: called with each call that a gradient reaches, and with the gradient.
        retain: whether another pass follows.
    """
    if not calls:
        return
    n = len(outputs)
    collector = GradientCollector(calls, lambda call, gradients: receive(call, call.joined(gradients, n)))
    sites = [(call, position, edge) for call in calls for position, edge in enumerate(call.edges)]
    above = graph.above(frozenset(edge.node for _, _, edge in sites))
    at_the_end = [site for site in sites if site[2].node not in above]
    handles = [
        edge.node.register_prehook(functools.partial(collector.hook, call, i, edge.output_nr))
        for call, i, edge in sites
        if edge.node in above
    ]
    try:
        gradients = torch.autograd.grad(
            outputs, [edge for _, _, edge in at_the_end], v, retain_graph=retain, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    for (call, position, _), g in zip(at_the_end, gradients, strict=True):
        collector.add(call, position, g)
    collector.finish_all()
