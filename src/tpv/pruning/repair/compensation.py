"""Re-fitting the layers of a pruned network by least squares, front to back, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.progress import Listener, Progress
from tpv.model.batches import batch_size, batches, call_model, ends
from tpv.model.linearization import Forward
from tpv.model.twin import twin_of
from tpv.pruning.repair.joins import UsesOf, joins
from tpv.pruning.repair.least_squares import (
    Layer,
    SplitMoments,
    counted_rows,
    error,
    fit,
    fittable,
    groups_of,
    output_rows,
)

_LAYERS_AT_ONCE = 8
_SMALLEST_SLOPE = 1e-3


@dataclass(frozen=True)
class Refit:
    """A layer's ridge, chosen on held-out examples, and E‖W x + b − y‖² over E‖y − E y‖² on all."""

    layer: str
    ridge: float
    error: float


class _StopError(Exception):
    """Ends a forward pass that is no longer needed."""


def compensate(
    pruned: nn.Module,
    reference: nn.Module,
    data: object,
    kept: Mapping[str, Tensor],
    *,
    forward: Forward | None = None,
    progress: bool | Listener | Progress = False,
) -> list[Refit]:
    r"""Re-fit, in place, every convolution and linear layer behind a removed channel towards the unpruned
    network's outputs.

    .. math:: \min_{W, b} E\|W x' + b - (y + e)\|^2 + \lambda \|W - W_0\|^2

    with x' the layer's inputs in the *already pruned and re-fitted* network, y its outputs in the unpruned
    one, and, where y is added to a residual stream (directly or behind a BatchNorm), e the error that is
    already in the stream. λ is chosen on every fourth example. Where the layer has no bias, b goes into the
    running mean of the BatchNorm behind it; without either, b = 0. Layers that are frozen, tied, called twice
    or have hooks stay as they are; batches that skip a layer and padded positions do not count for it.

    Args:
        pruned: the pruned model.
        reference: the unpruned one.
        data: calibration inputs, in the same order at every reading.
        kept: module → which output channels of the reference it still has, from
            :func:`tpv.pruning.channels.surgery.kept_outputs`.
        forward: as in :func:`tpv.estimate`.
        progress: as in :func:`tpv.prune`.

    Returns:
        A line for each layer, in the order of execution.

    Cost: for each layer one forward pass of the pruned network up to it and linear solves in its number of
        inputs; for every eight layers one of the unpruned network. At most 128 positions of an
        example take part.
    """
    parts = list(batches(data))
    example = ends(parts[0], batch_size(parts[0]))
    order = _order(pruned, example, forward)
    narrower = [name for name in order if _inputs(pruned, name) < _inputs(reference, name)]
    todo = order[order.index(narrower[0]) :] if narrower else []
    refits = []
    with Progress.of(progress).stage("re-fitting", total=len(todo)) as bar, twin_of(reference) as (twin, _):
        for start in range(0, len(todo), _LAYERS_AT_ONCE):
            names, later = todo[start : start + _LAYERS_AT_ONCE], todo[start + _LAYERS_AT_ONCE :]
            targets = [_observe(twin, names, part, forward, later, kept) for part in parts]
            for i, name in enumerate(names, start + 1):
                put_bias = _bias_setter(pruned, name, example, forward)
                moments = SplitMoments.zero(fittable(pruned)[name])
                observe = partial(_observe, pruned, [name], forward=forward, later=todo[i:])
                for target, part in zip([t.pop(name, None) for t in targets], parts, strict=True):
                    _update(moments, target, part, observe)
                refits += _refit(name, moments, put_bias)
                bar.advance()
    return refits


def _order(model: nn.Module, batch: Any, forward: Forward | None) -> list[str]:
    """Names of the layers to re-fit in the order of execution; none that is called more than once."""
    called: list[str] = []
    layers = fittable(model).items()
    hooks = [m.register_forward_hook(lambda *_, name=name: called.append(name)) for name, m in layers]
    run_hooked(model, batch, forward, hooks)
    return [name for name in called if called.count(name) == 1]


def _inputs(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[return-value]


@torch.no_grad()
def run_hooked(model: nn.Module, batch: Any, forward: Forward | None, handles: Iterable[Any]) -> None:
    """A forward pass, after which the handles of its hooks are removed."""
    with ExitStack() as hooks, suppress(_StopError):
        for handle in handles:
            hooks.enter_context(handle)
        (forward or call_model)(model, batch)


@dataclass(eq=False)
class _Observed:
    """A layer's output (R, O) at sampled positions, what it is added to and the BatchNorm's slope between."""

    output: Tensor
    stream: Tensor | None = None
    scale: Tensor | None = None


def _update(
    moments: SplitMoments, target: _Observed | None, batch: Any, observe: Callable[..., dict[str, _Observed]]
) -> None:
    """Add a batch's inputs of a layer and their targets, if both networks run the layer on it."""
    x: list[Tensor] = []
    handle = moments.layer.register_forward_pre_hook(lambda module, args: x.append(args[0].clone()))
    now = list(observe(batch, handles=[handle]).values())
    if target and now:
        rows = target.output + _correction(target, now[0])
        moments.update(x[0], rows, batch_size(batch), counted_rows(moments.layer, batch, x[0]))


@torch.no_grad()
def _refit(name: str, moments: SplitMoments, put_bias: Callable[[Tensor], object] | None) -> list[Refit]:
    """On the batches in which both networks run the layer; nothing if there is none."""
    layer, moments = moments.layer, moments if put_bias is not None else moments.uncentered()
    if not moments.all.rows:
        return []
    w0 = layer.weight.detach().double().reshape(groups_of(layer), -1, layer.weight[0].numel())
    ridge = moments.best_ridge(w0)
    w, b = fit(moments.all, w0, ridge)
    layer.weight.copy_(w.reshape(layer.weight.shape))
    if put_bias is not None:
        put_bias(b.flatten().to(layer.weight))
    variance = max(moments.all.centered()[2].sum().item(), 1e-30)
    return [Refit(name, ridge, error(moments.all, w, b) / variance)]


def _correction(target: _Observed, now: _Observed) -> Tensor:
    """The error in the stream, in units of the layer's output; none where the BatchNorm's slope is 0."""
    if target.stream is None or now.stream is None or target.stream.shape != now.stream.shape:
        return target.output.new_zeros(())
    gap = target.stream - now.stream
    if target.scale is None:
        return gap
    usable = target.scale.abs() > _SMALLEST_SLOPE * target.scale.abs().max()
    return gap * torch.where(usable, 1 / target.scale, 0)


def _selected(t: Tensor, keep: Tensor | None) -> Tensor:
    """The channels to keep of the last axis; those beyond the end of the mask stay."""
    if keep is None:
        return t
    mask = torch.cat([keep, torch.ones(t.shape[-1] - len(keep), dtype=torch.bool)])
    return t[..., mask.to(t.device)]


def _observe(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    forward: Forward | None,
    later: Sequence[str],
    outputs_left: Mapping[str, Tensor] = MappingProxyType({}),
    handles: Sequence[Any] = (),
) -> dict[str, _Observed]:
    """A forward pass up to the first of the later layers, observing what some layers have left."""
    observed: dict[str, _Observed] = {}

    def rows(name: str, t: Tensor) -> Tensor:
        return _selected(output_rows(layers[name], t), outputs_left.get(name))

    def stop(*_: Any) -> None:
        if len(observed) == len(names):
            raise _StopError

    layers: dict[str, Layer] = {name: model.get_submodule(name) for name in names}  # type: ignore[misc]
    hooks = [
        m.register_forward_hook(lambda m, a, y, n=n: observed.update({n: _Observed(rows(n, y))}))
        for n, m in layers.items()
    ]
    hooks += [model.get_submodule(name).register_forward_pre_hook(stop) for name in later]
    with joins(model, {name: partial(rows, name) for name in names}) as additions:
        run_hooked(model, batch, forward, [*handles, *hooks])
    for name, join in additions.items():
        observed[name].stream = join.other
        observed[name].scale = None if join.scale is None else _selected(join.scale, outputs_left.get(name))
    return observed


def _bias_setter(
    model: nn.Module, name: str, batch: Any, forward: Forward | None
) -> Callable[[Tensor], object] | None:
    """Where a bias goes: the layer's own, or the running mean of the BatchNorm that alone takes its output;
    None without either.
    """
    layer: Layer = model.get_submodule(name)  # type: ignore[assignment]
    if layer.bias is not None:
        return layer.bias.copy_ if layer.bias.requires_grad else None
    uses, calls = UsesOf(), list[tuple[nn.modules.batchnorm._BatchNorm, bool]]()
    handles = [layer.register_forward_hook(lambda m, a, y: setattr(uses, "watched", y))]
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        handles.append(norm.register_forward_pre_hook(lambda m, a: calls.append((m, a[0] is uses.watched))))
    with uses:
        run_hooked(model, batch, forward, handles)
    norms = [norm for norm, takes in calls if takes and [m for m, _ in calls].count(norm) == 1]
    if uses.functions != ["batch_norm"] or not norms or norms[0].running_mean is None:
        return None
    return norms[0].running_mean.sub_ if norms[0].num_features == len(layer.weight) else None
