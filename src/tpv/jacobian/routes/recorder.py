"""Recording module calls during a forward pass, and proving from the autograd graph what they cover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from tpv.jacobian.formulas.base import checksum
from tpv.model.attributes import Attributes
from tpv.model.batches import map_tensors, tensors

Site = tuple[nn.Module, int]
"""A module and which of its calls in a forward pass."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """One call: the module, what went in, where what came out sits in the graph, and where the inputs came
    from.

    Gradient edges outlive in-place operations on the outputs (``relu_()``, ``out += shortcut``), which leave
    the tensors themselves stale.

    Attributes:
        site: the module and the number of this call.
        arguments: positional and keyword arguments.
        versions: of the argument tensors at the time of the call.
        sources: the nodes that made them.
        outputs: position among the output tensors → gradient edge, for those that carry a gradient.
        shapes: of all output tensors.
        known: whether the layer has a closed form.
        checksums: of the outputs of any other module, (sum, sum of magnitudes) each, to tell whether it does
            the same again.
        attributes: of any other module, as they were when it was called.
    """

    site: Site
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    versions: tuple[int, ...]
    sources: frozenset[Node]
    outputs: dict[int, GradientEdge]
    shapes: tuple[torch.Size, ...]
    known: bool
    checksums: tuple[Tensor, ...]
    attributes: Attributes | None

    @property
    def module(self) -> nn.Module:
        return self.site[0]

    @property
    def inputs(self) -> list[Tensor]:
        """The argument tensors."""
        return list(tensors(self.arguments))

    @property
    def x(self) -> Tensor | None:
        """The first argument, which is a layer's input."""
        args, kwargs = self.arguments
        first = args[0] if args else kwargs.get("input")
        return first if isinstance(first, Tensor) else None

    @property
    def stale(self) -> bool:
        """Whether an input was written to during or after the call."""
        return any(t._version != version for t, version in zip(self.inputs, self.versions, strict=True))


@dataclass(frozen=True, eq=False)
class _Entered:
    """A call under way."""

    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    versions: tuple[int, ...]
    sources: frozenset[Node]
    attributes: Attributes | None


class Recorder:
    """A context in which forward passes leave the calls of ``modules`` in ``calls``.

    Args:
        modules: whose calls to record.
        n: number of examples.
        known: those with a closed form.
        expand: calls whose outputs are the same for every example (position embeddings) and are to be given
            an axis of n examples, so that each has a gradient of its own.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        n: int,
        known: Collection[nn.Module],
        expand: Collection[Site] = (),
    ) -> None:
        self.calls: list[Recorded] = []
        self.recording = True
        self._modules, self._n, self._known, self._expand = list(modules), n, known, expand
        self._counts: Counter[nn.Module] = Counter()
        self._open: list[_Entered] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for module in self._modules:
            self._handles.append(module.register_forward_pre_hook(self._enter_call, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave_call))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.recording:
            inputs = list(tensors((args, kwargs)))
            sources = frozenset(t.grad_fn for t in inputs if t.grad_fn is not None)
            attributes = None if module in self._known else Attributes(module)
            self._open.append(
                _Entered(module, (args, kwargs), tuple(t._version for t in inputs), sources, attributes)
            )

    def _leave_call(self, module: nn.Module, _: Any, output: Any) -> Any:
        if not self.recording:
            return output
        while self._open[-1].module is not module:  # calls that ended in an exception which the model caught
            self._open.pop()
        entered = self._open.pop()
        site, known = (module, self._counts[module]), module in self._known
        self._counts[module] += 1
        edges: dict[int, GradientEdge] = {}
        shapes: list[torch.Size] = []
        checksums: list[Tensor] = []

        def placed(t: Tensor) -> Tensor:
            if t.requires_grad:
                t = self._own(t, site)
                edges[len(shapes)] = get_gradient_edge(t)
            shapes.append(t.shape)
            checksums.append(torch.empty(0) if known else checksum(t))
            return t

        output = map_tensors(output, placed)
        self.calls.append(
            Recorded(
                site,
                entered.arguments,
                entered.versions,
                entered.sources,
                edges,
                tuple(shapes),
                known,
                tuple(checksums),
                entered.attributes,
            )
        )
        return output

    def _own(self, t: Tensor, site: Site) -> Tensor:
        """The output as a node of its own where a later in-place operation on a view would rewrite its
        history, or where a later output of the same call may depend on it. It shares the memory but is no
        view.
        """
        if site in self._expand:
            t = expanded(t, self._n)
        return torch.ops.aten._unsafe_view(t, t.shape) if t._is_view() or site[0] not in self._known else t


def expanded(t: Tensor, n: int) -> Tensor:
    """A tensor that all examples share, with an axis of n examples in front, or its first axis of length one
    made that.
    """
    t = t if t.ndim and len(t) == 1 else t.unsqueeze(0)
    return t.expand(n, *t.shape[1:])


Use = tuple[Node, int]
_REORDERING = (
    "Index",
    "Gather",
    "Scatter",
    "Sort",
    "Topk",
    "TopK",
    "MaskedSelect",
    "MaskedScatter",
    "Take",
    "Flip",
    "Roll",
    "Unfold",
)


class Graph:
    """The autograd graph of the outputs: which calls lead to them, and where each parameter is used."""

    def __init__(self, outputs: Tensor, calls: Iterable[Recorded]) -> None:
        self.root = outputs.grad_fn
        self.nodes, self.uses = _walk([self.root], stop=frozenset())
        self.calls = [
            call for call in calls if any(edge.node in self.nodes for edge in call.outputs.values())
        ]
        self._within: dict[Recorded, tuple[set[Node], Mapping[int, set[Use]]]] = {}
        self._above: dict[frozenset[Node], set[Node]] = {}

    def live(self, call: Recorded) -> list[int]:
        """Positions of the call's outputs that lead to the model's."""
        return [i for i, edge in call.outputs.items() if edge.node in self.nodes]

    def covered(self, key: int, calls: Iterable[Recorded]) -> bool:
        """Whether every use of a parameter (by id) lies inside one of the calls, with that call's inputs
        intact.

        Any other use (``F.linear(x, self.w)``, a custom function, a parametrisation) is outside of a layer's
        own call.
        """
        inside: set[Use] = set()
        for call in calls:
            if not call.stale and call not in self._leaking:
                inside |= self._interior(call)[1].get(key, set())
        return self.uses.get(key, set()) <= inside

    def _interior(self, call: Recorded) -> tuple[set[Node], Mapping[int, set[Use]]]:
        """What lies between a call's outputs and its inputs: the nodes, and who uses each parameter."""
        if call not in self._within:
            self._within[call] = _walk([edge.node for edge in call.outputs.values()], stop=call.sources)
        return self._within[call]

    @cached_property
    def _leaking(self) -> set[Recorded]:
        """Calls without a closed form from which anything but their outputs leads on: a tensor kept as an
        attribute, say.
        """
        entrances: dict[Node, list[Recorded]] = {}
        for call in self.calls:
            outputs = set() if call.known else {edge.node for edge in call.outputs.values()}
            for node in () if call.known else self._interior(call)[0] - outputs:
                entrances.setdefault(node, []).append(call)
        found: set[Recorded] = set()
        for node in self.nodes if entrances else ():
            for following, _ in node.next_functions:
                if following in entrances:
                    found |= {call for call in entrances[following] if node not in self._interior(call)[0]}
        return found

    @cached_property
    def reorders(self) -> bool:
        """Whether rows may have changed places somewhere: an indexing, sorting or rolling operation is in the
        graph.
        """
        return any(node.name().startswith(_REORDERING) for node in self.nodes)

    def above(self, targets: frozenset[Node]) -> set[Node]:
        """Nodes through which every backward pass to ``targets`` runs: those with one strictly below, towards
        the inputs.
        """
        if targets not in self._above:
            self._above[targets] = self._found_above(targets)
        return self._above[targets]

    def _found_above(self, targets: frozenset[Node]) -> set[Node]:
        found: set[Node] = set()
        seen: set[Node] = set()
        stack = [(self.root, False)] if self.root is not None else []
        while stack:
            node, finished = stack.pop()
            following = [f for f, _ in node.next_functions if f is not None]
            if finished:
                if any(f in targets or f in found for f in following):
                    found.add(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(f, False) for f in following if f not in seen]
        return found


def _walk(starts: Iterable[Node | None], stop: frozenset[Node]) -> tuple[set[Node], dict[int, set[Use]]]:
    """Nodes reachable from ``starts`` without passing ``stop``, and who uses each parameter (by id)."""
    nodes: set[Node] = set()
    uses: dict[int, set[Use]] = {}
    stack = [node for node in starts if node is not None and node not in stop]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        if hasattr(node, "variable"):  # the output is a parameter itself
            uses.setdefault(id(node.variable), set()).add((node, -1))
        for index, (following, _) in enumerate(node.next_functions):
            if following is None or following in stop:
                continue
            if hasattr(following, "variable"):
                uses.setdefault(id(following.variable), set()).add((node, index))
            else:
                stack.append(following)
    return nodes, uses
