"""How far the predictions move when a single group is made narrower and its readers are re-fitted: measured, at several widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv._batches import batch_size, batches, call_model
from tpv._guard import unchanged
from tpv.linearization import Forward
from tpv.outputs import Output
from tpv.pruning.groups import ChannelGroup, Member
from tpv.pruning.least_squares import Layer, Moments, best_fit, groups_of, rows
from tpv.pruning.verification import mask_of_inputs

_HELD_OUT = 4
Curve = dict[int, float]
"""Width → E‖Δf‖²."""


def widths_of(width: int, points: int) -> list[int]:
    """Widths to measure, from 1 to the whole, denser near the whole."""
    return sorted({max(1, round(width * (i / points))) for i in range(1, points + 1)})


def measure_curve(
    model: nn.Module,
    group: ChannelGroup,
    order: Tensor,
    data: object,
    *,
    points: int = 10,
    refit: bool = True,
    output: Output,
    forward: Forward | None = None,
) -> Curve:
    """E‖Δf‖² with the group's ``width`` most important channels left and its readers re-fitted, on the same inputs.

    Args:
        order: channels from the least to the most important.
    """
    parts = list(batches(data))
    consumers = [m for m in group.chosen("consumers") if model.get_submodule(m.module).weight.requires_grad]
    fixed = [m for m in group.chosen("consumers") if m not in consumers]
    sums = _gather(model, consumers, parts, forward)
    run = forward or call_model
    with torch.no_grad():
        before = [output.select(run(model, part)) for part in parts]
        curve = {group.width: 0.0}
        for width in widths_of(group.width, points)[:-1]:
            gone = torch.zeros(group.width, dtype=torch.bool)
            gone[order[: group.width - width]] = True
            changed = {m.module: _without(model, m, sums[m.module], gone, refit=refit) for m in consumers}
            changed |= {m.module: (_cut(model, m, gone), None) for m in fixed}
            with _with(model, changed):
                moved = sum(
                    output.divergence(f, output.select(run(model, part))).sum().item() for f, part in zip(before, parts, strict=True)
                )
            curve[width] = moved / sum(map(batch_size, parts))
    return curve


def _gather(
    model: nn.Module, consumers: Sequence[Member], parts: Sequence[Any], forward: Forward | None
) -> dict[str, tuple[Moments, Moments]]:
    """Moments of each reader's inputs and outputs, of three in four examples and of the others."""
    layers: dict[str, Layer] = {m.module: model.get_submodule(m.module) for m in consumers}  # type: ignore[misc]
    sums = {name: (Moments.zero(layer), Moments.zero(layer)) for name, layer in layers.items()}
    offset = 0

    def note(name: str, n: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], y: Tensor) -> None:
            x = args[0]
            held = ((torch.arange(n) + offset) % _HELD_OUT == 0).repeat_interleave(len(x) // n)
            for mask, moments in ((~held, sums[name][0]), (held, sums[name][1])):
                if mask.any():
                    moments.add(*rows(module, x[mask], y[mask]))

        return hook

    for part in parts:
        n = batch_size(part)
        handles = [layer.register_forward_hook(note(name, n)) for name, layer in layers.items()]
        try:
            with torch.no_grad():
                (forward or call_model)(model, part)
        finally:
            for handle in handles:
                handle.remove()
        offset += n
    return sums


def _cut(model: nn.Module, member: Member, gone: Tensor) -> Tensor:
    """The reader's weight with zeros."""
    layer = model.get_submodule(member.module)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach() * mask_of_inputs(layer, member.index[gone[member.channel]]).to(weight)


def _without(model: nn.Module, member: Member, sums: tuple[Moments, Moments], gone: Tensor, *, refit: bool) -> tuple[Tensor, Tensor | None]:
    """The reader's re-fitted weight, with zeros, and what is added to its bias."""
    layer: Layer = model.get_submodule(member.module)  # type: ignore[assignment]
    w = _cut(model, member, gone)
    g = groups_of(layer)
    if not refit or g > 1:
        return w, None
    inputs = w.shape[1]
    keep = torch.ones(inputs, dtype=torch.bool)
    keep[member.index[gone[member.channel]]] = False
    index = keep.repeat_interleave(w[0].numel() // inputs).nonzero().flatten()
    w0 = w.reshape(1, len(w), -1)[:, :, index].double()
    fitted, bias, _ = best_fit(sums[0].restricted(index), sums[1].restricted(index), w0)
    flat = w.reshape(len(w), -1)
    flat[:, index] = fitted[0].to(w)
    old = 0 if layer.bias is None else layer.bias.detach()
    return flat.reshape(w.shape), bias[0].to(w) - old


@contextmanager
def _with(model: nn.Module, changed: Mapping[str, tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """The model with other weights and shifted outputs of some layers, for a while."""

    def shift(by: Tensor) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            return y + (by if isinstance(module, nn.Linear) else by.view(-1, *[1] * (y.ndim - 2)))

        return hook

    with unchanged(model):
        for name, (weight, bias) in changed.items():
            layer = model.get_submodule(name)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                layer.register_forward_hook(shift(bias))
        yield
