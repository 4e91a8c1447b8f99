"""Recording layer calls during a forward pass, and proving from the autograd graph what they cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from tpv.sweep.layers import is_known


@dataclass(frozen=True)
class Recorded:
    """One call: the module, its input, where its output sits in the graph, and where its input came from.

    The gradient edge outlives in-place operations on the output (``relu_()``, ``out += shortcut``),
    which leave the tensor itself stale.
    """

    module: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge
    source: Node | None

    @property
    def stale(self) -> bool:
        """Whether the input was written to after the call."""
        return self.x._version != self.version


class Recorder:
    """A context in which forward passes leave their calls of known layers in ``calls``."""

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        """``names`` maps ``id(parameter)`` to its name, for the perturbed parameters."""
        self.calls: list[Recorded] = []
        self.recording = True
        self._names = names
        self._model = model
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for module in self._model.modules():
            if is_known(module) and any(id(p) in self._names for p in module._parameters.values()):
                self._handles.append(module.register_forward_hook(self._record, with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(output, Tensor) or not isinstance(x, Tensor) or not output.requires_grad:
            return output
        if output._is_view():
            # An in-place operation on a view rewrites its history; this shares the memory but is no view.
            output = torch.ops.aten._unsafe_view(output, output.shape)
        if self.recording:
            self.calls.append(Recorded(module, x, x._version, get_gradient_edge(output), x.grad_fn))
        return output


@dataclass(frozen=True)
class Coverage:
    """Which recorded calls lead to the outputs, and which parameters they account for completely."""

    calls: list[Recorded]
    uncovered: set[str]
    unreached: set[str]


Use = tuple[Node, int]


def coverage(outputs: Tensor, calls: list[Recorded], names: Mapping[int, str]) -> Coverage:
    """Compare every use of a parameter in the graph with the uses inside recorded calls.

    A parameter is covered if each of its uses that reaches the outputs lies inside a recorded call
    of a module that owns it, with that call's input intact. Any other use (``F.linear(x, self.w)``, a
    custom function, a parametrisation) makes it uncovered.
    """
    nodes, uses = _walk(outputs.grad_fn, stop=None)
    live = [call for call in calls if call.edge.node in nodes]
    inside: set[tuple[int, Use]] = set()
    for call in live:
        owned = {id(p) for p in call.module._parameters.values() if p is not None}
        _, within = _walk(call.edge.node, stop=call.source)
        if not call.stale:
            inside |= {(key, use) for key, found in within.items() if key in owned for use in found}
    uncovered = {names[key] for key, found in uses.items() if key in names and any((key, use) not in inside for use in found)}
    return Coverage(live, uncovered, {name for key, name in names.items() if key not in uses})


def _walk(start: Node | None, stop: Node | None) -> tuple[set[Node], dict[int, set[Use]]]:
    """Nodes reachable from ``start`` without passing ``stop``, and who uses each parameter (by id)."""
    nodes: set[Node] = set()
    uses: dict[int, set[Use]] = {}
    stack = [start] if start is not None and start is not stop else []
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        if hasattr(node, "variable"):  # the output is a parameter itself
            uses.setdefault(id(node.variable), set()).add((node, -1))
        for index, (following, _) in enumerate(node.next_functions):
            if following is None or following is stop:
                continue
            if hasattr(following, "variable"):
                uses.setdefault(id(following.variable), set()).add((node, index))
            else:
                stack.append(following)
    return nodes, uses
