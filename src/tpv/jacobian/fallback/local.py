"""The route of a module without a formula: it runs again by itself, differentiated by ``torch.func``."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from tpv.common.errors import is_out_of_memory
from tpv.jacobian.fallback.whole_model import Reduce, vmappable
from tpv.jacobian.formulas.base import LayerCall, Variance, checksum
from tpv.jacobian.formulas.precision import widened
from tpv.model.attributes import Attributes
from tpv.model.batches import map_tensors, tensors
from tpv.model.functional import call_with
from tpv.model.memory import SCRATCH_BYTES


class NotRepeatedError(Exception):
    """A module that runs again does not compute what it computed before."""


class LocalCall(LayerCall):
    """The module runs again with its recorded arguments, differentiated by some of its parameters.

    Cost: one forward+backward pass through this module, ``vmap``-ed over examples, or one example at a time
    if ``torch.func`` refuses.

    Args:
        module: any module whose outputs depend on parameters and arguments alone.
        arguments: positional and keyword arguments.
        axes: for each argument tensor, the axis that counts examples (n · r rows, r for each example), or
            None.
        outputs: positions of the output tensors that g belongs to → the axis that counts examples.
        n: number of examples.
        expected: (sum, sum of magnitudes) of these outputs as recorded.
        attributes: of the module, as they were when it was called.

    Raises:
        NotRepeatedError: by its methods, if the module gives other outputs than were recorded.
    """

    reruns = True

    def __init__(
        self,
        module: nn.Module,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        axes: Sequence[int | None],
        outputs: Mapping[int, int],
        n: int,
        expected: Tensor,
        attributes: Attributes,
    ) -> None:
        self.module, self.arguments, self.axes, self.outputs, self.n = module, arguments, axes, outputs, n
        self.vectorized, self._before, self._after = True, attributes, Attributes(module)
        self._expected: Tensor | None = expected
        self._half = {k: widened(t.detach()) for k, t in _state(module) if widened(t) is not t}
        self.rows = [
            by_example(widened(t.detach()), a, n)
            for t, a in zip(tensors(arguments), axes, strict=True)
            if a is not None
        ]

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        return self._reduced(g, names, lambda name, gradient: gradient)

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        return self._reduced(g, variance, lambda name, gradient: variance[name].square(gradient))

    def _reduced(self, g: Tensor, names: Collection[str], reduce: Reduce) -> dict[str, Tensor]:
        """As many examples at a time as have gradients that fit the scratch memory."""
        point = {name: widened(self.module.get_parameter(name).detach()) for name in names}
        at_a_time = max(1, SCRATCH_BYTES // sum(w.numel() * w.element_size() for w in point.values()))
        blocks, sums = [], []
        for start in range(0, self.n, at_a_time):
            rows = [g[start : start + at_a_time], *(r[start : start + at_a_time] for r in self.rows)]
            with vmappable():
                gradients, checksums = self._block(point, rows)
            blocks.append({name: reduce(name, gradients.pop(name)) for name in names})
            sums.append(checksums.sum(0))
        self._compare(torch.stack(sums).sum(0))
        return {name: torch.cat([block[name] for block in blocks]) for name in names}

    def _block(self, point: dict[str, Tensor], rows: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of some examples, and (examples, 2) checksums of their outputs."""
        if self.vectorized:
            try:
                both: tuple[dict[str, Tensor], Tensor] = vmap(
                    grad(self._inner, has_aux=True), (None, *[0] * len(rows))
                )(point, *rows)
                return both
            except Exception as error:  # torch.func refuses in many ways
                if is_out_of_memory(error):
                    raise
                self.vectorized = False
        try:
            singles = [self._single(point, *row) for row in zip(*rows, strict=True)]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise NotRepeatedError from error
        gradients = {name: torch.stack([single[name] for single, _ in singles]) for name in point}
        return gradients, torch.stack([checksums for _, checksums in singles])

    @torch.enable_grad()
    def _single(self, point: dict[str, Tensor], g: Tensor, *rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same for one example, by plain autograd."""
        w = {name: p.clone().requires_grad_() for name, p in point.items()}
        inner, checksums = self._inner(w, g, *rows)
        gradients = torch.autograd.grad(inner, list(w.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if gradient is None else gradient
            for (name, p), gradient in zip(point.items(), gradients, strict=True)
        }, checksums

    def _compare(self, sums: Tensor) -> None:
        """Once, whether the outputs are those that were recorded: attributes set from outside may have
        changed.
        """
        if self._expected is not None:
            tolerance = 5e-2 if self._half or torch.is_autocast_enabled(sums.device.type) else 1e-3
            expected, self._expected = self._expected.to(sums), None
            if ((sums - expected).abs() > tolerance * expected[1]).any():
                raise NotRepeatedError

    def _inner(self, w: dict[str, Tensor], g: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """⟨g, outputs⟩ of one example, and the checksum of its outputs."""
        following, axes = iter(rows), iter(self.axes)

        def own(t: Tensor) -> Tensor:
            axis = next(axes)
            return widened(t.detach()) if axis is None else next(following).movedim(0, axis)

        args, kwargs = map_tensors(self.arguments, own)
        self._before.restore()
        try:
            outputs = list(tensors(call_with(self.module, self._half | w, args, kwargs)))
        finally:
            self._after.restore()
        joined = torch.cat([outputs[i].movedim(axis, 0).reshape(-1) for i, axis in self.outputs.items()])
        return (joined * g).sum(), checksum(joined)


def by_example(t: Tensor, axis: int, n: int) -> Tensor:
    """(n, r, ...) from a tensor whose ``axis`` has n · r rows, r for each example."""
    t = t.movedim(axis, 0)
    return t.reshape(n, -1, *t.shape[1:])


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())
