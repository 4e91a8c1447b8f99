"""Activations that layers read and write, and where they sit in the autograd graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tpv._errors import TPVError
from tpv.pruning.groups import Role

Site = tuple[str, Role]


@dataclass(frozen=True, eq=False)
class Tap:
    """One reading or writing of a layer.

    Attributes:
        site: the module's name, and whether this is its input ("consumer") or output ("producer").
        value: the activation.
        version: of its memory when it was tapped.
        edge: where its gradient arrives: for an input, that through this layer alone.
        axis: of the channels.
    """

    site: Site
    value: Tensor
    version: int
    edge: GradientEdge
    axis: int

    @property
    def stale(self) -> bool:
        """Whether the activation was written to after it was tapped."""
        return self.value._version != self.version

    def term(self, gradient: Tensor, n: int) -> Tensor:
        """Σ over positions of activation × gradient, (N, channels) in float64.

        Rows of a folded batch axis (N · r) belong to their example in order.
        """
        product = (self.value * gradient).movedim(self.axis, -1)
        if len(product) % n:
            raise TPVError(
                f"{self.site[0]} sees {len(product)} rows for {n} examples, which cannot be told apart by example: score with chunk_size=1."
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
    if raw := sorted(names - {name for name, _ in model.named_modules(remove_duplicate=False)}):
        raise TPVError(f'{raw[0]} is a parameter outside of a layer, which cannot be scored by channel: use members="consumers".')
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
        alias = _alias(x)
        found.append(_tap((name, "consumer"), alias, axis_of(module, x), copied))
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "input": alias})

    return hook


def _writing(name: str, found: list[Tap], copied: Collection[Site]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise TPVError(
                f'{name} is a {type(module).__name__}, whose output is no tensor: score with members="consumers", or leave its group out.'
            )
        alias = _alias(output)
        found.append(_tap((name, "producer"), alias, axis_of(module, alias), copied))
        return alias

    return hook


def _alias(t: Tensor) -> Tensor:
    """The same memory as a node of its own in the graph, so that its gradient is that of what comes next alone."""
    return torch.ops.aten._unsafe_view(t, t.shape) if t.requires_grad else t.detach().requires_grad_()


def _tap(site: Site, t: Tensor, axis: int, copied: Collection[Site]) -> Tap:
    value = t.detach().clone() if site in copied else t.detach()
    return Tap(site, value, value._version, get_gradient_edge(t), axis)


def axis_of(module: nn.Module, x: Tensor) -> int:
    """Where a layer has its channels: axis 1 behind convolutions and most norms, else the last."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)
    return 1 if convolution or norm else -1
