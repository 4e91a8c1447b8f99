"""The autograd graph of the outputs: where each parameter is used, and which recorded calls cover it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

from torch import Tensor
from torch.autograd.graph import Node

from tpv.jacobian.routes.recorder import Recorded

Use = tuple[Node, int]
"""A node and which of its inputs a parameter is."""
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
    """What leads to the outputs: nodes, calls, and uses of parameters."""

    def __init__(self, outputs: Tensor, calls: Iterable[Recorded]) -> None:
        self.root = outputs.grad_fn
        self.nodes, self.uses = _walk([self.root], stop=frozenset())
        self.calls = [
            call for call in calls if any(edge.node in self.nodes for edge in call.outputs.values())
        ]
        self._interiors: dict[Recorded, tuple[set[Node], Mapping[int, set[Use]]]] = {}
        self._above: dict[frozenset[Node], set[Node]] = {}

    def live(self, call: Recorded) -> list[int]:
        """Positions of the call's outputs that lead to the model's."""
        return [i for i, edge in call.outputs.items() if edge.node in self.nodes]

    def coverage_gap(self, key: int, calls: Collection[Recorded]) -> str:
        """Why some use of a parameter (by id) lies outside of these calls; "" if all lie inside.

        A use counts as inside only if the call's inputs are intact. ``F.linear(x, self.w)``, a custom
        function or a parametrization use a parameter outside of a layer's own call.
        """
        inside: set[Use] = set()
        for call in calls:
            if not call.modified_in_place and call not in self._leaking:
                inside |= self._interior(call)[1].get(key, set())
        if self.uses.get(key, set()) <= inside:
            return ""
        if any(call.modified_in_place for call in calls):
            return "an input of its layer is modified in place"
        if any(call in self._leaking for call in calls):
            return "its module passes on more than its outputs"
        return "used outside the calls of its layer"

    def _interior(self, call: Recorded) -> tuple[set[Node], Mapping[int, set[Use]]]:
        """What lies between a call's outputs and its inputs: the nodes, and who uses each parameter."""
        if call not in self._interiors:
            self._interiors[call] = _walk([edge.node for edge in call.outputs.values()], stop=call.sources)
        return self._interiors[call]

    @cached_property
    def _leaking(self) -> set[Recorded]:
        """Calls without a formula that pass on more than their outputs, such as a tensor stored as an
        attribute.
        """
        entrances: dict[Node, list[Recorded]] = {}
        for call in self.calls:
            outputs = set() if call.analytic else {edge.node for edge in call.outputs.values()}
            for node in () if call.analytic else self._interior(call)[0] - outputs:
                entrances.setdefault(node, []).append(call)
        leaking: set[Recorded] = set()
        for node in self.nodes if entrances else ():
            for following, _ in node.next_functions:
                if following in entrances:
                    leaking |= {call for call in entrances[following] if node not in self._interior(call)[0]}
        return leaking

    @cached_property
    def reorders(self) -> bool:
        """Whether an indexing, sorting or rolling operation in the graph may have reordered rows."""
        return any(node.name().startswith(_REORDERING) for node in self.nodes)

    def above(self, targets: frozenset[Node]) -> set[Node]:
        """Nodes that every backward pass to ``targets`` runs through: those with a target strictly below,
        towards the inputs.
        """
        if targets not in self._above:
            self._above[targets] = self._nodes_above(targets)
        return self._above[targets]

    def _nodes_above(self, targets: frozenset[Node]) -> set[Node]:
        above: set[Node] = set()
        seen: set[Node] = set()
        stack = [(self.root, False)] if self.root is not None else []
        while stack:
            node, finished = stack.pop()
            following = [f for f, _ in node.next_functions if f is not None]
            if finished:
                if any(f in targets or f in above for f in following):
                    above.add(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(f, False) for f in following if f not in seen]
        return above


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
