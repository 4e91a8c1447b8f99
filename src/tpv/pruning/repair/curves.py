"""The output change when one group is made narrower and its consumers are re-fitted, at several widths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tpv.model.batches import batch_size, batches, narrow
from tpv.model.linearization import Forward
from tpv.model.outputs import Output
from tpv.pruning.channels.groups import ChannelGroup, Member
from tpv.pruning.channels.surgery import own_copy, zero_inputs
from tpv.pruning.repair.compensation import run_hooked
from tpv.pruning.repair.least_squares import SplitMoments, counted_rows, fit, fittable, groups_of, output_rows
from tpv.pruning.scores.measurement import OutputChangeMeter
from tpv.pruning.widths.selection import Curve

_MEASURED_EXAMPLES = 256


def widths_of(width: int, points: int) -> list[int]:
    """Widths to measure, evenly from 1 to the whole."""
    return sorted({max(1, round(width * i / points)) for i in range(points + 1)})


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
    """E‖Δf‖² with the last ``width`` channels of an order left and the group's consumers re-fitted.

    Cost: one forward pass, and for each width one of the first 256 examples and a linear solve for each
        consumer.
    """
    parts = list(batches(data))
    narrowed = own_copy(model)
    consumers = [_Consumer(narrowed, m, refit=refit) for m in group.consumers]
    fitted = [(model.get_submodule(c.member.module), c) for c in consumers if c.moments is not None]
    for part in parts if fitted else ():
        hooks = [layer.register_forward_hook(partial(c.observe, part)) for layer, c in fitted]
        run_hooked(model, part, forward, hooks)
    for consumer in consumers:
        consumer.choose_ridge(order[: group.width - group.width // 2])
    meter = OutputChangeMeter(model, list(_first(parts, _MEASURED_EXAMPLES)), output, forward)
    curve = {group.width: 0.0}
    for width in widths_of(group.width, points)[:-1]:
        for consumer in consumers:
            consumer.refit_without(order[: group.width - width])
        curve[width] = meter(narrowed)[0].value
    return curve


def _first(parts: Sequence[Any], most: int) -> Iterator[Any]:
    for part in parts:
        if most > 0:
            n = batch_size(part)
            yield narrow(part, 0, min(n, most), n)
            most -= n


class _Consumer:
    """A layer that takes the channels as inputs, changed in place; some only lose inputs, without a fit."""

    def __init__(self, model: nn.Module, member: Member, *, refit: bool) -> None:
        self.member, self._layer = member, model.get_submodule(member.module)
        self._weight: Tensor = self._layer.weight.detach().clone()  # type: ignore[operator]
        layer = fittable(model).get(member.module) if refit else None
        self.moments = None if layer is None or groups_of(layer) > 1 else SplitMoments.zero(layer)
        self._ridge = 0.0
        self._shift: Tensor | None = None
        if self.moments is not None:
            self._layer.register_forward_hook(self._shifted)

    def observe(self, batch: Any, layer: Any, args: tuple[Any, ...], y: Tensor) -> None:
        """Count a batch's inputs and outputs of the unpruned layer."""
        assert self.moments is not None
        counted = counted_rows(layer, batch, args[0])
        self.moments.update(args[0], output_rows(layer, y), batch_size(batch), counted)

    def choose_ridge(self, gone: Tensor) -> None:
        """By held-out examples, without these channels."""
        if self.moments is not None:
            index = self._inputs_left(gone)
            self._ridge = self.moments.restricted(index).best_ridge(self._rows[..., index])

    @torch.no_grad()
    def refit_without(self, gone: Tensor) -> None:
        """Fit the weights of the other channels, with zeros for these."""
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        if self.moments is None:
            zero_inputs(self._layer, weight.copy_(self._weight), self.member.positions(gone))
            return
        index = self._inputs_left(gone)
        w, b = fit(self.moments.restricted(index).all, self._rows[..., index], self._ridge)
        weight.copy_(torch.zeros_like(self._rows).index_copy(2, index, w).reshape(weight.shape))
        old = self._layer.bias.detach() if isinstance(self._layer.bias, Tensor) else 0
        self._shift = b[0].to(weight) - old

    def _shifted(self, module: nn.Module, args: Any, y: Tensor) -> Tensor | None:
        if self._shift is None:
            return None
        trailing = 0 if isinstance(module, nn.Linear) else y.ndim - 2
        return y + self._shift.view(-1, *[1] * trailing)

    @property
    def _rows(self) -> Tensor:
        return self._weight.double().reshape(1, len(self._weight), -1)

    def _inputs_left(self, gone: Tensor) -> Tensor:
        """Columns of the weight's rows whose inputs are still there."""
        keep = torch.ones(self._weight.shape[1], dtype=torch.bool)
        keep[self.member.positions(gone)] = False
        columns = keep.repeat_interleave(self._weight[0, 0].numel())
        return columns.nonzero().flatten().to(self._weight.device)
