"""Channel groups from Torch-Pruning's dependency graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.batches import call_model
from tpv.model.linearization import Forward
from tpv.model.outputs import outputs_tensor
from tpv.pruning.channels.groups import ChannelGroup, Member, Members, Role


def torch_pruning() -> Any:
    """The library.

    Raises:
        TPVError: where it is not installed.
    """
    try:
        import torch_pruning as tp
    except ImportError:
        raise TPVError("structured pruning needs Torch-Pruning: pip install 'tpv[pruning]'.") from None
    return tp


def trace(model: nn.Module, example: Any, forward: Forward | None = None) -> Any:
    """The ``tp.DependencyGraph`` of a model.

    Raises:
        TPVError: where Torch-Pruning cannot trace it.
    """
    tp = torch_pruning()
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for p in frozen:
            p.requires_grad_()
        with _in_words(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                model,
                example,
                forward_fn=lambda m, x: outputs_tensor((forward or call_model)(m, x)),
                verbose=False,
            )
            return _bounded(graph)
    finally:
        for p in frozen:
            p.requires_grad_(False)


class _Followed(list[Any]):
    """What a node of the graph leads to; nothing once it has been followed so many times."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__() if self.times <= _MOST_TIMES else iter(())


_MOST_TIMES = 96


def _bounded(graph: Any) -> Any:
    """The graph, with a search for groups that ends: concatenations in a loop, as of rotary embeddings, shift
    channels for ever.
    """
    search, nodes = graph.get_pruning_group, set(graph.module2node.values())
    for node in nodes:
        node.dependencies = _Followed(node.dependencies)

    def get_pruning_group(*args: Any, **kwargs: Any) -> Any:
        for node in nodes:
            node.dependencies.times = 0
        group = search(*args, **kwargs)
        group.endless = any(node.dependencies.times > _MOST_TIMES for node in nodes)
        return group

    graph.get_pruning_group = get_pruning_group
    return graph


def group_of(graph: Any, name: str, channels: list[int]) -> Any:
    """The ``tp.dependency.Group`` of output channels of the module ``name``."""
    root = graph.model.get_submodule(name)
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels)


def all_groups(graph: Any, members: Members | None = None) -> list[Any]:
    """Every ``tp.dependency.Group`` whose channels do not reach the outputs by themselves, with all its
    channels.

    Args:
        graph: a ``tp.DependencyGraph``.
        members: leave out the groups without such members.
    """
    tp = torch_pruning()
    roots = tuple(
        tp.ops.type2class(kind) for kind in (tp.ops.OPTYPE.CONV, tp.ops.OPTYPE.LINEAR, tp.ops.OPTYPE.EMBED)
    )
    with _in_words():
        groups = list(graph.get_all_groups(root_module_types=roots))
    found = [group for group in groups if not any(_is_output(graph, dep) for dep, _ in group)]
    return [group for group in found if members is None or _scorable(channel_group(group), members)]


@contextmanager
def _in_words() -> Iterator[None]:
    """What Torch-Pruning stumbles over, in words."""
    try:
        yield
    except TPVError:
        raise
    except Exception as error:
        raise TPVError(f"Torch-Pruning cannot trace the model ({type(error).__name__}: {error}).") from error


def _scorable(group: ChannelGroup, members: Members) -> bool:
    try:
        return bool(group.chosen(members))
    except TPVError:
        return False


def _is_output(graph: Any, dep: Any) -> bool:
    node = dep.target
    return (
        not node.outputs
        and graph.is_out_channel_pruning_fn(dep.handler)
        and not isinstance(node.module, nn.Parameter)
    )


def channel_group(group: Any) -> ChannelGroup:
    """A ``tp.dependency.Group`` in our terms."""
    graph = group._DG
    names = {module: name for name, module in graph.model.named_modules()}
    if getattr(group, "endless", False):
        channels = torch.arange(len(group[0].idxs))
        loop = Member("operations in a loop, as of rotary embeddings", "opaque", channels, channels)
        return ChannelGroup(names[group[0].dep.target.module], len(channels), (loop,))
    together = _together(graph, group)
    tied = math.lcm(len(together), *(_tied(graph, dep) for dep, _ in group))
    width = len(group[0].idxs) // tied
    position = {root: i for i, root in enumerate(group[0].idxs)}
    regular = all((position[i] - position[together[0]]) % width == 0 for i in together)
    members = []
    for item in group:
        module = item.dep.target.module
        role = _role(graph, item.dep)
        if role is None:
            continue
        known = (
            regular
            and set(item.root_idxs) <= position.keys()
            and 0 <= min(item.idxs) <= max(item.idxs) < _axis(graph, item.dep)
        )
        channels = torch.tensor([position.get(root, 0) for root in item.root_idxs]) % width
        name = names.get(module) if isinstance(module, nn.Module) else graph._param_to_name.get(module)
        index = torch.tensor(item.idxs if known else [0] * len(channels))
        members.append(Member(name or _operation(item.dep), role if known else "opaque", index, channels))
    return ChannelGroup(names[group[0].dep.target.module], width, tuple(members), tied)


def _together(graph: Any, group: Any) -> list[int]:
    """The channels of the root that go when its first one goes, more than one where halves of an output meet
    (gated linear units).
    """
    root = group[0].dep
    with _in_words():
        return sorted(graph.get_pruning_group(root.target.module, root.handler, group[0].idxs[:1])[0].idxs)


def _axis(graph: Any, dep: Any) -> float:
    """How many channels a module has on the side that a dependency takes them from."""
    count = graph.get_out_channels if graph.is_out_channel_pruning_fn(dep.handler) else graph.get_in_channels
    found = count(dep.target)
    return math.inf if found is None else found


def _tied(graph: Any, dep: Any) -> int:
    """How many equal parts a layer needs its channels in."""
    module, pruner = dep.target.module, graph.get_pruner_of_module(dep.target.module)
    if (
        isinstance(module, nn.Parameter)
        or pruner is None
        or not isinstance(module, nn.Module)
        or _is_depthwise(module)
    ):
        return 1
    side = (
        pruner.get_out_channel_groups
        if graph.is_out_channel_pruning_fn(dep.handler)
        else pruner.get_in_channel_groups
    )
    return int(side(module))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1


_PASSING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
_PRODUCTS = ("mm", "mv", "dot", "linear", "convolution", "rnn", "lstm", "gru")


def _role(graph: Any, dep: Any) -> Role | None:
    """How a module takes part, None for operations without weights."""
    module = dep.target.module
    if isinstance(module, nn.Parameter):
        return "parameter"
    if type(module).__module__.startswith("torch_pruning"):
        return "opaque" if _is_layer(dep.target) else None
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return "opaque"
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not _is_depthwise(module):
        return "producer" if graph.is_out_channel_pruning_fn(dep.handler) else "consumer"
    return "producer" if isinstance(module, _PASSING) or _is_depthwise(module) else "opaque"


def _is_layer(node: Any) -> bool:
    """Whether an operation outside of a layer multiplies matrices, one of which is a parameter:
    ``F.linear(x, self.weight)``.
    """
    name = _name(node.grad_fn)
    if not any(kind in name for kind in _PRODUCTS):
        return False
    weights = [leaf for parent, _ in node.grad_fn.next_functions if (leaf := _parameter(parent)) is not None]
    return bool(weights) and not any(weight is p for p in _owner(node) for weight in weights)


def _parameter(fn: Any) -> Tensor | None:
    """What ends a chain of views and transpositions, if it is a parameter."""
    while fn is not None and len(fn.next_functions) == 1:
        fn = fn.next_functions[0][0]
    return fn.variable if "accumulategrad" in _name(fn) else None


def _owner(node: Any) -> list[Tensor]:
    """The parameters of the layer that an operation is part of, whose output is a view of the operation's."""
    while type(node.module).__module__.startswith("torch_pruning") and len(node.outputs) == 1:
        node = node.outputs[0]
    return list(node.module.parameters()) if isinstance(node.module, nn.Module) else []


def _name(fn: Any) -> str:
    return str(fn.name()).lower() if fn is not None else ""


def _operation(dep: Any) -> str:
    fn = dep.target.grad_fn
    return (
        f"an operation outside of a layer ({fn.name()})"
        if fn is not None
        else type(dep.target.module).__name__
    )
