"""Re-fitting the layers of a pruned network in closed form, front to back, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv._batches import batch_size, batches, call_model
from tpv.linearization import Forward
from tpv.pruning.joins import joins
from tpv.pruning.least_squares import Layer, Moments, best_fit, error, groups_of, rows

_HELD_OUT = 4
_SMALLEST_SLOPE = 1e-3


@dataclass(frozen=True)
class Refit:
    """What became of one layer.

    Attributes:
        layer: its name.
        ridge: chosen on held-out images.
        error: E‖W x + b − y‖² over E‖y − E y‖², after the fit, on all images.
    """

    layer: str
    ridge: float
    error: float


class _StopError(Exception):
    """The pass has seen what it came for."""


def compensate(
    pruned: nn.Module,
    reference: nn.Module,
    data: object,
    kept: Mapping[str, Tensor],
    *,
    forward: Forward | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Refit]:
    r"""Re-fit, in place, every convolution and linear layer behind a removed channel towards the unpruned network's outputs.

    .. math:: \min_{W, b} E\|W x' + b - (y + e)\|^2 + \lambda \|W - W_0\|^2

    with x' the layer's inputs in the *already pruned and re-fitted* network, y its outputs in the unpruned one, and, where y is
    added to a residual stream (directly or behind a BatchNorm), e the error that is already in the stream. λ is chosen on every
    fourth batch's images. Where the layer has no bias, b goes into the running mean of the BatchNorm behind it, or becomes one.

    Args:
        pruned: the pruned model.
        reference: the unpruned one.
        data: calibration inputs, in the same order at every reading.
        kept: module → which output channels of the reference it still has, from :func:`tpv.pruning.surgery.kept_outputs`.
        forward: as in :func:`tpv.estimate`.
        progress: called with (layers done, layers).

    Returns:
        A line for each layer, in the order of execution.

    Cost: for each layer one forward pass of both networks up to it, and a linear solve in its number of inputs.
    """
    parts = batches(data)
    first = next(iter(parts))
    order = _order(pruned, first, forward)
    narrower = _narrower(pruned, reference, order)
    if not narrower:
        return []
    todo = order[order.index(narrower[0]) :]
    found = []
    for i, name in enumerate(todo):
        found.append(_refit(name, pruned, reference, parts, kept, set(todo[i + 1 :]), forward))
        if progress is not None:
            progress(i + 1, len(todo))
    return found


def _order(model: nn.Module, batch: Any, forward: Forward | None) -> list[str]:
    """Names of the trainable convolutions and linear layers in the order of execution; those called twice are left as they are."""
    called: list[str] = []
    fitted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    named = {name: m for name, m in model.named_modules() if type(m) in fitted and m.weight.requires_grad}
    handles = [m.register_forward_hook(lambda *_, name=name: called.append(name)) for name, m in named.items()]
    _run(model, batch, forward, handles)
    return [name for name in called if called.count(name) == 1]


def _narrower(pruned: nn.Module, reference: nn.Module, order: list[str]) -> list[str]:
    """Layers with fewer inputs than before."""

    def inputs(model: nn.Module, name: str) -> int:
        layer = model.get_submodule(name)
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[return-value]

    return [name for name in order if inputs(pruned, name) < inputs(reference, name)]


@torch.no_grad()
def _run(model: nn.Module, batch: Any, forward: Forward | None, handles: Iterable[Any] = ()) -> None:
    try:
        (forward or call_model)(model, batch)
    except _StopError:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _refit(
    name: str,
    pruned: nn.Module,
    reference: nn.Module,
    parts: Iterable[Any],
    kept: Mapping[str, Tensor],
    later: set[str],
    forward: Forward | None,
) -> Refit:
    layer: Layer = pruned.get_submodule(name)  # type: ignore[assignment]
    sums = Moments.zero(layer), Moments.zero(layer)
    seen = 0
    for batch in parts:
        x, _, stream, _ = _watch(pruned, name, batch, forward, later)
        _, y, original, scale = _watch(reference, name, batch, forward, later)
        channels = kept.get(name)
        axis = -1 if isinstance(layer, nn.Linear) else 1
        if channels is not None:
            y = selected(y, channels, axis)
        if stream is not None and original is not None:
            y = y + _correction(original, stream, scale, channels, axis)
        n = batch_size(batch)
        held = (torch.arange(n) + seen) % _HELD_OUT == 0
        r = len(x) // n
        for mask, moments in ((~held, sums[0]), (held, sums[1])):
            index = mask.repeat_interleave(r)
            if index.any():
                moments.add(*rows(layer, x[index], y[index]))
        seen += n
    g = groups_of(layer)
    w0 = layer.weight.detach().double().reshape(g, len(layer.weight) // g, -1)
    w, b, ridge = best_fit(*sums, w0)
    _put(pruned, name, w, b, next(iter(parts)), forward)
    return Refit(name, ridge, _relative(sums[0] + sums[1], w, b))


def _relative(moments: Moments, w: Tensor, b: Tensor) -> float:
    return error(moments, w, b) / max(moments.centered()[2].sum().item(), 1e-30)


def _correction(original: Tensor, stream: Tensor, scale: Tensor | None, channels: Tensor | None, axis: int) -> Tensor:
    """The error in the stream, in units of the layer's output; none where the BatchNorm between them all but closes a channel."""
    if channels is not None:
        original = selected(original, channels, axis)
        scale = None if scale is None else selected(scale, channels, 0)
    if original.shape != stream.shape:
        return torch.zeros(())
    if scale is None:
        return original - stream
    usable = scale.abs() > _SMALLEST_SLOPE * scale.abs().max()
    inverse = torch.where(usable, 1 / scale, 0).view(-1, *[1] * (stream.ndim - 2))
    return (original - stream) * inverse


def selected(t: Tensor, keep: Tensor, axis: int) -> Tensor:
    """The channels to keep; those beyond the end of the mask stay."""
    length = t.shape[axis]
    mask = torch.cat([keep, torch.ones(length - len(keep), dtype=torch.bool)])
    return t.index_select(axis, mask.nonzero().flatten().to(t.device))


def _watch(
    model: nn.Module, name: str, batch: Any, forward: Forward | None, later: set[str]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A layer's input and output, and the stream that its output is added to with the slope in between, if any."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.extend((args[0].detach().clone(), output.detach().clone()))

    def stop(*_: Any) -> None:
        if seen:
            raise _StopError

    handles = [model.get_submodule(name).register_forward_hook(note)]
    handles += [model.get_submodule(other).register_forward_pre_hook(stop) for other in later]
    with joins(model, {name}) as found:
        _run(model, batch, forward, handles)
    join = found[0] if found else None
    return seen[0], seen[1], join.other if join else None, join.scale if join else None


@torch.no_grad()
def _put(model: nn.Module, name: str, w: Tensor, b: Tensor, batch: Any, forward: Forward | None) -> None:
    """Write the weights, and the bias to where it belongs."""
    layer: Layer = model.get_submodule(name)  # type: ignore[assignment]
    layer.weight.copy_(w.reshape(layer.weight.shape))
    bias = b.flatten().to(layer.weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)
    elif (norm := _norm_behind(model, name, batch, forward)) is not None:
        norm.running_mean.sub_(bias)  # type: ignore[union-attr]
    else:
        layer.bias = nn.Parameter(bias)


def _norm_behind(model: nn.Module, name: str, batch: Any, forward: Forward | None) -> nn.modules.batchnorm._BatchNorm | None:
    """The BatchNorm that alone reads a layer's output."""
    outputs: list[Tensor] = []
    found: list[nn.modules.batchnorm._BatchNorm] = []

    def read(module: nn.Module, args: tuple[Any, ...]) -> None:
        if outputs and args and args[0] is outputs[0]:
            found.append(module)  # type: ignore[arg-type]

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [model.get_submodule(name).register_forward_hook(lambda m, a, output: outputs.append(output))]
    handles += [norm.register_forward_pre_hook(read) for norm in norms]
    _run(model, batch, forward, handles)
    return found[0] if len(found) == 1 else None
