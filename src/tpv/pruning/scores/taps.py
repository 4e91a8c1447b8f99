"""Activations that layers read and write, and where they sit in the autograd graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tpv.common.errors import TPVError
from tpv.pruning.channels.groups import Role

Site = tuple[str, Role]


@dataclass(frozen=True, eq=False)
class Tap:
    """One reading or writing of a layer.

    Attributes:
        site: the module's name, and whether this is its input ("consumer") or output ("producer").
        value: the activation, of an output the part that is linear in the layer's weights.
        watched: tensors whose memory must stay as it is, with their versions when they were tapped.
        edge: where its gradient arrives: for an input, that through this layer alone.
        axis: of the channels.
    """

    site: Site
    value: Tensor
    watched: tuple[tuple[Tensor, int], ...]
    edge: GradientEdge
    axis: int

    @property
    def stale(self) -> bool:
        """Whether the activation was written to after it was tapped."""
        return any(tensor._version != version for tensor, version in self.watched)

    def term(self, gradient: Tensor, n: int, *, absolute: bool = False) -> Tensor:
        """Σ over positions of activation × gradient, or of its absolute value, (N, channels) in float64.

        Rows of a folded batch axis (N · r) belong to their example in order.
        """
        product = (self.value * gradient).movedim(self.axis, -1)
        product = product.abs() if absolute else product
        if len(product) % n:
            raise TPVError(
                f"{self.site[0]} sees {len(product)} rows for {n} examples, which cannot be told apart by "
                "example: score with chunk_size=1."
            )
        return product.reshape(n, -1, product.shape[-1]).sum(1, dtype=torch.float64)


@contextmanager
def taps(model: nn.Module, sites: Collection[Site], copied: Collection[Site]) -> Iterator[list[Tap]]:
    """A context in which forward passes leave the activations of ``sites`` in the list.

    Args:
        model: the model.
        sites: (module, "consumer" or "producer").
        copied: those whose activations are written over later (``relu_()``), to be kept as copies.
    """
    found: list[Tap] = []
    names = {name for name, _ in sites}
    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in names:
            continue
        if (name, "consumer") in sites:
            handles.append(module.register_forward_pre_hook(_reading(name, found, copied), with_kwargs=True))
        if (name, "producer") in sites:
            handles.append(module.register_forward_hook(_writing(name, found, copied)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _reading(name: str, found: list[Tap], copied: Collection[Site]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        site: Site = (name, "consumer")
        alias = _alias(x.clone() if site in copied else x)
        found.append(
            _tap(site, alias.detach(), [] if site in copied else [alias, x], alias, axis_of(module, x))
        )
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "input": alias})

    return hook


def _writing(name: str, found: list[Tap], copied: Collection[Site]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise TPVError(
                f'{name} is a {type(module).__name__}, whose output is no tensor: score with members="consumers", or leave its group out.'
            )
        site: Site = (name, "producer")
        alias = _alias(output)
        value = _weighted(module, args, alias.detach())
        found.append(
            _tap(
                site,
                value.clone() if site in copied else value,
                [] if site in copied else [alias],
                alias,
                axis_of(module, alias),
            )
        )
        return alias

    return hook


def _alias(t: Tensor) -> Tensor:
    """The same memory as a node of its own in the graph, so that its gradient is that of what comes next
    alone.
    """
    alias: Tensor = torch.ops.aten._unsafe_view(
        t if t.requires_grad else t.detach().requires_grad_(), t.shape
    )
    return alias


def _tap(site: Site, value: Tensor, watched: list[Tensor], alias: Tensor, axis: int) -> Tap:
    return Tap(site, value, tuple((t, t._version) for t in watched), get_gradient_edge(alias), axis)


@torch.no_grad()
def _weighted(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The part of a layer's output that is linear in its weights."""
    if isinstance(module, nn.PReLU):
        return output.sub(args[0].relu())
    return output if any(True for _ in module.parameters()) else torch.zeros_like(output)


def axis_of(module: nn.Module, x: Tensor) -> int:
    """Where a layer has its channels: axis 1 of convolutions, most norms and PReLU, else the last."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.PReLU)
    return 1 if convolution or norm else -1
