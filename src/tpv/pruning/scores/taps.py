"""Activations that layers take in and give out, and where they sit in the autograd graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import Role

Site = tuple[str, Role]
"""(module, "consumer" for its input or "producer" for its output)."""


@dataclass(frozen=True, eq=False)
class Tap:
    """An activation at one call of a layer.

    Attributes:
        site: where.
        value: the activation, of an output the part that is linear in the layer's weights.
        watched: tensors whose memory must stay as it is, with their versions at the call.
        edge: where its gradient arrives: for an input, that through this layer alone.
        axis: of the channels.
    """

    site: Site
    value: Tensor
    watched: tuple[tuple[Tensor, int], ...]
    edge: GradientEdge
    axis: int

    @property
    def modified(self) -> bool:
        """Whether the activation was modified in place after the call."""
        return any(tensor._version != version for tensor, version in self.watched)

    def term(self, gradient: Tensor, n: int, *, absolute: bool = False) -> Tensor:
        """Σ over positions of activation × gradient, or of its absolute value, (N, channels) in float64.

        Rows of a folded batch axis (N · r) belong to their example in order.
        """
        product = (self.value * gradient).movedim(self.axis, -1)
        product = product.abs() if absolute else product
        if len(product) % n:
            raise TPVError(
                f"{self.site[0]} sees {len(product)} rows for {n} examples, which cannot be attributed to "
                "single examples: score with chunk_size=1."
            )
        return product.reshape(n, -1, product.shape[-1]).sum(1, dtype=torch.float64)


@contextmanager
def taps(model: nn.Module, sites: Collection[Site], copied: Collection[Site]) -> Iterator[list[Tap]]:
    """A context in which forward passes append the activations at ``sites`` to the list; those that
    are modified in place later (``relu_()``) must be ``copied``.
    """
    tapped: list[Tap] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules(remove_duplicate=False):
            if (name, "consumer") in sites:
                hook = _input_hook((name, "consumer"), tapped, (name, "consumer") in copied)
                hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            if (name, "producer") in sites:
                hook = _output_hook((name, "producer"), tapped, (name, "producer") in copied)
                hooks.enter_context(module.register_forward_hook(hook))
        yield tapped


def _input_hook(site: Site, tapped: list[Tap], copy: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        alias = _alias(x.clone() if copy else x)
        tapped.append(_tap(site, alias.detach(), [] if copy else [alias, x], alias, axis_of(module)))
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "input": alias})

    return hook


def _output_hook(site: Site, tapped: list[Tap], copy: bool) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise TPVError(
                f"{site[0]} is a {type(module).__name__}, whose output is not a tensor: score with "
                'parameters="consumers", or leave its group out.'
            )
        alias = _alias(output)
        value = _part_linear_in_weights(module, args, alias.detach())
        value = value.clone() if copy else value
        tapped.append(_tap(site, value, [] if copy else [alias], alias, axis_of(module)))
        return alias

    return hook


def _alias(t: Tensor) -> Tensor:
    """The same memory as a node of its own in the graph, whose gradient is that of what comes next alone."""
    source = t if t.requires_grad else t.detach().requires_grad_()
    alias: Tensor = torch.ops.aten._unsafe_view(source, t.shape)
    return alias


def _tap(site: Site, value: Tensor, watched: list[Tensor], alias: Tensor, axis: int) -> Tap:
    return Tap(site, value, tuple((t, t._version) for t in watched), get_gradient_edge(alias), axis)


@torch.no_grad()
def _part_linear_in_weights(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    if isinstance(module, nn.PReLU):
        return output.sub(args[0].relu())
    return output if any(True for _ in module.parameters()) else torch.zeros_like(output)


def axis_of(module: nn.Module) -> int:
    """Where a layer has its channels: axis 1 of convolutions, most norms and PReLU, else the last."""
    batchnorm = nn.modules.batchnorm._NormBase
    return 1 if isinstance(module, nn.modules.conv._ConvNd | batchnorm | nn.GroupNorm | nn.PReLU) else -1
