"""How far the predictions move when a single group is made narrower and its readers are re-fitted: measured,
at several widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv.model.batches import batch_size, batches, call_model, narrow
from tpv.model.guard import unchanged
from tpv.model.linearization import Forward
from tpv.model.outputs import Output
from tpv.pruning.channels.groups import ChannelGroup, Member
from tpv.pruning.channels.verification import mask_of_inputs
from tpv.pruning.repair.least_squares import (
    Moments,
    Sums,
    best_ridge,
    counted_rows,
    fit,
    fittable,
    groups_of,
    output_rows,
)
from tpv.pruning.scores.measurement import Yardstick

_MEASURED = 256
Curve = dict[int, float]
"""Width → E‖Δf‖²."""


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
    """E‖Δf‖² with the group's ``width`` most important channels left and its readers re-fitted, on the same
    inputs.

    Args:
        order: channels from the least to the most important.

    Cost: one forward pass, and for each width one of the first 256 examples and a linear solve for each
        reader.
    """
    parts = list(batches(data))
    readers = [_Reader(model, m, refit=refit) for m in group.chosen("consumers")]
    _gather({r.member.module: r.sums for r in readers if r.sums is not None}, model, parts, forward)
    for reader in readers:
        reader.choose_ridge(_gone(order, group.width // 2))
    yardstick = Yardstick(model, list(_first(parts, _MEASURED)), output, forward)
    curve = {group.width: 0.0}
    for width in widths_of(group.width, points)[:-1]:
        with _with(model, {r.member.module: r.without(_gone(order, width)) for r in readers}):
            curve[width] = yardstick(model)[0].value
    return curve


def _gone(order: Tensor, width: int) -> Tensor:
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[: len(order) - width]] = True
    return gone


def _first(parts: Sequence[Any], most: int) -> Iterator[Any]:
    for part in parts:
        if most > 0:
            n = batch_size(part)
            yield narrow(part, 0, min(n, most), n)
            most -= n


def _gather(
    sums: Mapping[str, Sums], model: nn.Module, parts: Sequence[Any], forward: Forward | None
) -> None:
    """Add up each reader's inputs and outputs."""

    def note(name: str, part: Any) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], y: Tensor) -> None:
            sums[name].add(
                args[0], output_rows(layer, y), batch_size(part), counted_rows(layer, part, args[0])
            )

        return hook

    for part in parts if sums else ():
        handles = [model.get_submodule(name).register_forward_hook(note(name, part)) for name in sums]
        try:
            with torch.no_grad():
                (forward or call_model)(model, part)
        finally:
            for handle in handles:
                handle.remove()


class _Reader:
    """A layer that reads the channels, with what its re-fits need; convolutions in groups and what cannot be
    fitted are only cut.
    """

    def __init__(self, model: nn.Module, member: Member, *, refit: bool) -> None:
        self.member, self._layer = member, model.get_submodule(member.module)
        layer = fittable(model).get(member.module) if refit else None
        self.sums = None if layer is None or groups_of(layer) > 1 else Sums(layer)
        self._moments: Moments | None = None
        self._ridge = 0.0

    def choose_ridge(self, gone: Tensor) -> None:
        """By held-out examples, without these channels."""
        if self.sums is not None:
            index = self._left(gone)
            self._ridge = best_ridge(
                self.sums.fitted.restricted(index),
                self.sums.held_out.restricted(index),
                self._rows()[..., index],
            )
            self._moments, self.sums = self.sums.fitted + self.sums.held_out, None

    def without(self, gone: Tensor) -> tuple[Tensor, Tensor | None]:
        """Its weight, re-fitted and with zeros, and what is added to its outputs."""
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        if self._moments is None:
            return weight.detach() * mask_of_inputs(
                self._layer, self.member.index[gone[self.member.channel]]
            ).to(weight), None
        index = self._left(gone)
        w, b = fit(self._moments.restricted(index), self._rows()[..., index], self._ridge)
        whole = torch.zeros_like(self._rows()).index_copy(2, index, w)
        old = self._layer.bias.detach() if isinstance(self._layer.bias, Tensor) else 0
        return whole.reshape(weight.shape).to(weight), b[0].to(weight) - old

    def _rows(self) -> Tensor:
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        return weight.detach().double().reshape(1, len(weight), -1)

    def _left(self, gone: Tensor) -> Tensor:
        """Columns of the weight's rows that still have inputs."""
        weight: Tensor = self._layer.weight  # type: ignore[assignment]
        keep = torch.ones(weight.shape[1], dtype=torch.bool)
        keep[self.member.index[gone[self.member.channel]]] = False
        return keep.repeat_interleave(weight[0, 0].numel()).nonzero().flatten().to(weight.device)


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
