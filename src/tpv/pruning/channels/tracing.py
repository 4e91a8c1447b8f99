"""Torch-Pruning's dependency graph of a model, and the groups of channels in it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.batches import call_model
from tpv.model.linearization import Forward
from tpv.model.outputs import outputs_tensor
from tpv.model.watch import watch_of

_MAX_VISITS = 96
"""Of a node in one search: concatenations in a loop, as of rotary embeddings, shift channels for ever."""


def torch_pruning() -> Any:
    """The library."""
    try:
        import torch_pruning as tp
    except ImportError:
        raise TPVError("structured pruning needs Torch-Pruning: pip install 'tpv[pruning]'.") from None
    return tp


def trace(model: nn.Module, example: Any, forward: Forward | None = None) -> Any:
    """The ``tp.DependencyGraph`` of a model, with a search for groups that ends."""

    def run(m: nn.Module, batch: Any) -> Tensor:
        with watch_of(m).forward():
            return outputs_tensor((forward or call_model)(m, batch))

    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for p in frozen:
            p.requires_grad_()
        with tracing_errors(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return _graph_class()().build_dependency(model, example, forward_fn=run, verbose=False)
    finally:
        for p in frozen:
            p.requires_grad_(False)


class _Edges(list[Any]):
    """The dependencies of a node; none once it has been visited too often in one search."""

    visits = 0

    def __iter__(self) -> Iterator[Any]:
        self.visits += 1
        return super().__iter__() if self.visits <= _MAX_VISITS else iter(())


@cache
def _graph_class() -> Any:
    tp = torch_pruning()

    class Graph(tp.DependencyGraph):  # type: ignore[misc,name-defined]
        """A graph whose searches end; ``untraceable`` has the modules where one was cut short, and why."""

        def build_dependency(self, *args: Any, **kwargs: Any) -> Any:
            self.broken: set[Any] = set()
            self.untraceable: dict[nn.Module, str] = {}
            try:
                super().build_dependency(*args, **kwargs)
            except Exception:
                self.broken = _unfollowed(self)
                if not self.broken:
                    raise
            for node in self.module2node.values():
                node.dependencies = _Edges(node.dependencies)
            return self

        def get_pruning_group(self, module: nn.Module, pruning_fn: Any, idxs: Sequence[int]) -> Any:
            nodes = set(self.module2node.values())
            _set_visits(nodes, 0)
            try:
                group = super().get_pruning_group(module, pruning_fn, idxs)
            except Exception as error:
                self.untraceable[module] = f"an operation that Torch-Pruning cannot follow ({error})"
                _set_visits(nodes, _MAX_VISITS)
                return super().get_pruning_group(module, pruning_fn, idxs)
            if any(node.dependencies.visits > _MAX_VISITS for node in nodes):
                self.untraceable[module] = "operations in a loop, as of rotary embeddings"
            if any(dep.target in self.broken or dep.source in self.broken for dep, _ in group):
                self.untraceable[module] = "an operation that Torch-Pruning cannot follow"
            return group

    return Graph


def _set_visits(nodes: Iterable[Any], visits: int) -> None:
    for node in nodes:
        node.dependencies.visits = visits


def _unfollowed(graph: Any) -> set[Any]:
    """Operations that Torch-Pruning cannot follow channels through, from now on elementwise ones to it."""
    broken, alone = set(), copy.copy(graph)
    for module, node in getattr(graph, "module2node", {}).items():
        alone.module2node = {module: node}
        try:
            torch_pruning().dependency.index_mapping.update_index_mapping(alone)
        except Exception:
            broken.add(node)
            node.type = torch_pruning().ops.OPTYPE.ELEMENTWISE
    return broken


def group_of(graph: Any, name: str, channels: list[int]) -> Any:
    """The ``tp.dependency.Group`` of output channels of the module ``name``."""
    root = graph.model.get_submodule(name)
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels)


def all_groups(graph: Any) -> list[Any]:
    """Every ``tp.dependency.Group`` whose channels are not the model's outputs, with all its channels."""
    kinds = torch_pruning().ops.OPTYPE
    roots = tuple(map(torch_pruning().ops.type2class, (kinds.CONV, kinds.LINEAR, kinds.EMBED)))
    with tracing_errors():
        groups = list(graph.get_all_groups(root_module_types=roots))

    def is_output(dep: Any) -> bool:
        writes = graph.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs
        return writes and not isinstance(dep.target.module, nn.Parameter)

    return [group for group in groups if not any(is_output(dep) for dep, _ in group)]


@contextmanager
def tracing_errors() -> Iterator[None]:
    """Turn what Torch-Pruning raises into one sentence."""
    try:
        yield
    except TPVError:
        raise
    except Exception as error:
        raise TPVError(f"Torch-Pruning cannot trace the model ({type(error).__name__}: {error}).") from error
