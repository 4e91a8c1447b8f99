"""Any other module: its own per-example gradients by ``torch.func``, from its inputs and its output gradients
alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tpv.common.errors import is_out_of_memory
from tpv.jacobian.fallback.whole_model import vmappable
from tpv.jacobian.formulas.base import LayerCall, Variance, checksum, widened
from tpv.model.attributes import Attributes
from tpv.model.batches import map_tensors, tensors
from tpv.model.memory import SCRATCH_BYTES


class NotRepeatedError(Exception):
    """A module that runs again does not do what it did before."""


class LocalCall(LayerCall):
    """The module runs again with its recorded arguments, differentiated by the parameters that it is asked
    for.

    ``g`` is (n, total size of the outputs of an example), all outputs flattened and joined. Cost: one
    forward+backward pass through this module, ``vmap``-ed over examples, or one example at a time if
    ``torch.func`` refuses.

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
        self.vectorised, self._before, self._after = True, attributes, Attributes(module)
        self._expected: Tensor | None = expected
        self._half = {k: widened(t.detach()) for k, t in _state(module) if widened(t) is not t}
        self.rows = [
            by_example(widened(t.detach()), a, n)
            for t, a in zip(tensors(arguments), axes, strict=True)
            if a is not None
        ]

    def gradients(self, g: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        blocks = list(self._blocks(g, names))
        return {name: torch.cat([block[name] for block in blocks]) for name in names}

    def squares(self, g: Tensor, variance: Mapping[str, Variance]) -> dict[str, Tensor]:
        blocks = [{k: variance[k].square(d) for k, d in block.items()} for block in self._blocks(g, variance)]
        return {name: torch.cat([block[name] for block in blocks]) for name in variance}

    def _blocks(self, g: Tensor, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Gradients of as many examples at a time as fit the scratch memory."""
        point = {name: widened(self.module.get_parameter(name).detach()) for name in names}
        at_a_time = max(1, SCRATCH_BYTES // sum(w.numel() * w.element_size() for w in point.values()))
        sums = []
        for start in range(0, self.n, at_a_time):
            rows = [g[start : start + at_a_time], *(r[start : start + at_a_time] for r in self.rows)]
            with vmappable():
                found, outputs = self._block(point, rows)
            sums.append(outputs.sum(0))
            yield found
        self._compare(torch.stack(sums).sum(0))

    def _block(self, point: dict[str, Tensor], rows: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of some examples, and (examples, 2) checksums of their outputs."""
        if self.vectorised:
            try:
                both: tuple[dict[str, Tensor], Tensor] = vmap(
                    grad(self._inner, has_aux=True), (None, *[0] * len(rows))
                )(point, *rows)
                return both
            except Exception as error:  # torch.func refuses in many ways
                if is_out_of_memory(error):
                    raise
                self.vectorised = False
        try:
            found, sums = zip(*(self._single(point, *row) for row in zip(*rows, strict=True)), strict=True)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise NotRepeatedError from error
        return {name: torch.stack([f[name] for f in found]) for name in point}, torch.stack(sums)

    @torch.enable_grad()
    def _single(self, point: dict[str, Tensor], g: Tensor, *rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same for one example, by plain autograd."""
        w = {name: p.clone().requires_grad_() for name, p in point.items()}
        inner, sums = self._inner(w, g, *rows)
        found = torch.autograd.grad(inner, list(w.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if d is None else d
            for (name, p), d in zip(point.items(), found, strict=True)
        }, sums

    def _compare(self, sums: Tensor) -> None:
        """Once, whether the outputs are those that were recorded: attributes set from outside may have
        changed since.
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
            found = list(tensors(functional_call(self.module, self._half | w, args, kwargs)))
        finally:
            self._after.restore()
        joined = torch.cat([found[i].movedim(axis, 0).reshape(-1) for i, axis in self.outputs.items()])
        return (joined * g).sum(), checksum(joined)


def by_example(t: Tensor, axis: int, n: int) -> Tensor:
    """(n, r, ...) from a tensor whose ``axis`` has n · r rows, r for each example."""
    t = t.movedim(axis, 0)
    return t.reshape(n, -1, *t.shape[1:])


def is_plain(argument: Any) -> bool:
    """Whether an argument can be used again: tensors, numbers and text, and containers of them."""
    if isinstance(argument, Mapping):
        return all(map(is_plain, argument.values()))
    if isinstance(argument, list | tuple):
        return all(map(is_plain, argument))
    return argument is None or isinstance(argument, Tensor | int | float | str | torch.dtype | torch.device)


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())
