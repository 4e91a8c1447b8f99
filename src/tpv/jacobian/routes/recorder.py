"""Recording the calls of modules during a forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
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
    """One call: the module, its arguments, and the places of its inputs and outputs in the graph.

    Gradient edges outlive in-place operations on the outputs (``relu_()``, ``out += shortcut``); the tensors
    themselves would not.

    Attributes:
        site: the module and the number of this call.
        arguments: positional and keyword arguments.
        versions: of the argument tensors at the time of the call.
        sources: the nodes that made them.
        outputs: position among the output tensors → gradient edge, for those that carry a gradient.
        shapes: of all output tensors.
        analytic: whether the layer has an analytic formula.
        checksums: of the outputs of any other module, (sum, sum of magnitudes) each, to compare a repeated
            call with.
        attributes: of any other module, at the time of the call.
    """

    site: Site
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    versions: tuple[int, ...]
    sources: frozenset[Node]
    outputs: dict[int, GradientEdge]
    shapes: tuple[torch.Size, ...]
    analytic: bool
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
    def modified_in_place(self) -> bool:
        """Whether an input was written to during or after the call."""
        return any(t._version != version for t, version in zip(self.inputs, self.versions, strict=True))

    @property
    def repeatable(self) -> bool:
        """Whether the arguments can be used again: tensors, numbers and text, and containers of them."""
        return _is_plain(self.arguments)


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
        analytic: those with an analytic formula.
        expand: calls whose outputs are the same for every example (position embeddings) and are to be given
            an axis of n examples, so that each has a gradient of its own.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        n: int,
        analytic: Collection[nn.Module],
        expand: Collection[Site] = (),
    ) -> None:
        self.calls: list[Recorded] = []
        self._modules, self._n, self._analytic, self._expand = list(modules), n, analytic, expand
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
        inputs = list(tensors((args, kwargs)))
        sources = frozenset(t.grad_fn for t in inputs if t.grad_fn is not None)
        attributes = None if module in self._analytic else Attributes(module)
        self._open.append(
            _Entered(module, (args, kwargs), tuple(t._version for t in inputs), sources, attributes)
        )

    def _leave_call(self, module: nn.Module, _: Any, output: Any) -> Any:
        while self._open[-1].module is not module:  # calls that ended in an exception which the model caught
            self._open.pop()
        entered = self._open.pop()
        site, analytic = (module, self._counts[module]), module in self._analytic
        self._counts[module] += 1
        edges: dict[int, GradientEdge] = {}
        shapes: list[torch.Size] = []
        checksums: list[Tensor] = []

        def with_edge(t: Tensor) -> Tensor:
            if t.requires_grad:
                t = self._separate(t, site)
                edges[len(shapes)] = get_gradient_edge(t)
            shapes.append(t.shape)
            checksums.append(torch.empty(0) if analytic else checksum(t))
            return t

        output = map_tensors(output, with_edge)
        self.calls.append(
            Recorded(
                site,
                entered.arguments,
                entered.versions,
                entered.sources,
                edges,
                tuple(shapes),
                analytic,
                tuple(checksums),
                entered.attributes,
            )
        )
        return output

    def _separate(self, t: Tensor, site: Site) -> Tensor:
        """The output as a node of its own, sharing memory without being a view, where that is needed.

        A later in-place operation on a view would rewrite its history, and a later output of the same module
        call may depend on an earlier one.
        """
        if site in self._expand:
            t = expanded(t, self._n)
        separate = t._is_view() or site[0] not in self._analytic
        return torch.ops.aten._unsafe_view(t, t.shape) if separate else t


def expanded(t: Tensor, n: int) -> Tensor:
    """A tensor that all examples share, with an axis of n examples: a new one in front, or its first axis of
    length one.
    """
    t = t if t.ndim and len(t) == 1 else t.unsqueeze(0)
    return t.expand(n, *t.shape[1:])


def _is_plain(argument: Any) -> bool:
    if isinstance(argument, Mapping):
        return all(map(_is_plain, argument.values()))
    if isinstance(argument, list | tuple):
        return all(map(_is_plain, argument))
    return argument is None or isinstance(argument, Tensor | int | float | str | torch.dtype | torch.device)
