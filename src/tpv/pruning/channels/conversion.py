"""Groups of Torch-Pruning in the terms of this library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.pruning.channels.groups import ChannelGroup, Member, Parameters, Role
from tpv.pruning.channels.tracing import tracing_errors

_PASSING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
_PRODUCTS = ("mm", "mv", "dot", "linear", "convolution", "rnn", "lstm", "gru")


def channel_group(group: Any) -> ChannelGroup:
    """The :class:`ChannelGroup` of a ``tp.dependency.Group``."""
    graph, root, channels = group._DG, group[0].dep.target.module, group[0].idxs
    names = {module: name for name, module in graph.model.named_modules()}
    if reason := getattr(graph, "untraceable", {}).get(root):
        positions = torch.arange(len(channels))
        return ChannelGroup(names[root], len(channels), (Member(reason, "opaque", positions, positions),))
    together = _removed_together(graph, group)
    tied = math.lcm(len(together), *(_tied(graph, dep) for dep, _ in group))
    width = len(channels) // tied
    position = {channel: i for i, channel in enumerate(channels)}
    regular = all((position[i] - position[together[0]]) % width == 0 for i in together)
    members = []
    for item in group:
        role = _role(graph, item.dep)
        if role is not None:
            known = regular and set(item.root_idxs) <= position.keys() and _in_range(graph, item)
            channel = torch.tensor([position.get(i, 0) for i in item.root_idxs]) % width
            index = torch.tensor(item.idxs) if known else torch.zeros_like(channel)
            name = _name(graph, names, item.dep)
            members.append(Member(name, role if known else "opaque", index, channel))
    return ChannelGroup(names[root], width, tuple(members), tied)


def scorable(groups: Sequence[Any], parameters: Parameters) -> list[ChannelGroup]:
    """Those of some groups of Torch-Pruning that can be scored."""
    return [group for group in map(channel_group, groups) if group.why_not_scored(parameters) is None]


def _removed_together(graph: Any, group: Any) -> list[int]:
    """The root's channels that go with its first: several where halves of an output meet (gated units)."""
    root = group[0].dep
    with tracing_errors():
        return sorted(graph.get_pruning_group(root.target.module, root.handler, group[0].idxs[:1])[0].idxs)


def _in_range(graph: Any, item: Any) -> bool:
    """Whether the module has these channels on the side that they are removed from."""
    writes = graph.is_out_channel_pruning_fn(item.dep.handler)
    length = (graph.get_out_channels if writes else graph.get_in_channels)(item.dep.target)
    return min(item.idxs) >= 0 and (length is None or max(item.idxs) < length)


def _tied(graph: Any, dep: Any) -> int:
    """How many equal parts a layer needs its channels in."""
    module = dep.target.module
    if not isinstance(module, nn.Module) or _is_depthwise(module):
        return 1
    if (pruner := graph.get_pruner_of_module(module)) is None:
        return 1
    writes = graph.is_out_channel_pruning_fn(dep.handler)
    return int((pruner.get_out_channel_groups if writes else pruner.get_in_channel_groups)(module))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1


def _role(graph: Any, dep: Any) -> Role | None:
    """How a module takes part, None for operations without weights."""
    module = dep.target.module
    if isinstance(module, nn.Parameter):
        return "parameter"
    if _is_operation(module):
        return "opaque" if _is_layer(dep.target) else None
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return "opaque"
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not _is_depthwise(module):
        return "producer" if graph.is_out_channel_pruning_fn(dep.handler) else "consumer"
    return "producer" if isinstance(module, _PASSING) or _is_depthwise(module) else "opaque"


def _is_operation(module: Any) -> bool:
    """Whether Torch-Pruning made it up for an operation outside of a layer."""
    return type(module).__module__.startswith("torch_pruning")


def _is_layer(node: Any) -> bool:
    """Whether an operation outside of a layer multiplies by a parameter: ``F.linear(x, self.weight)``."""
    if not any(kind in _function(node.grad_fn) for kind in _PRODUCTS):
        return False
    weights = [leaf for parent, _ in node.grad_fn.next_functions if (leaf := _parameter(parent)) is not None]
    while _is_operation(node.module) and len(node.outputs) == 1:  # a layer whose output is a view of this one
        node = node.outputs[0]
    own = list(node.module.parameters()) if isinstance(node.module, nn.Module) else []
    return bool(weights) and not any(weight is p for p in own for weight in weights)


def _parameter(fn: Any) -> Tensor | None:
    """The parameter at the end of a chain of views and transpositions, if there is one."""
    while fn is not None and len(fn.next_functions) == 1:
        fn = fn.next_functions[0][0]
    return fn.variable if "accumulategrad" in _function(fn) else None


def _function(fn: Any) -> str:
    return str(fn.name()).lower() if fn is not None else ""


def _name(graph: Any, names: dict[nn.Module, str], dep: Any) -> str:
    module, fn = dep.target.module, dep.target.grad_fn
    name = names.get(module) if isinstance(module, nn.Module) else graph._param_to_name.get(module)
    operation = type(module).__name__ if fn is None else f"an operation outside of a layer ({fn.name()})"
    return name or operation
