"""What is trained on: a network's own outputs on its training inputs, and noise on them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.model.batches import batch_size, batches, chunks
from tpv.model.checks import check_device, check_outputs
from tpv.model.independence import repeatability
from tpv.model.linearization import Linearization
from tpv.model.memory import choose_chunk_size
from tpv.model.outputs import centered, class_axis, mask_of, same


class TrainingSet:
    """Training inputs with the trained network's outputs z* on them; z = Πf where outputs are centered.

    Args:
        lin: the model at w*.
        data: a tensor or a re-iterable of batches; always in the same order.
        center: whether the loss sees Πf, Π = I − 11ᵀ/K, instead of f.
        chunk_size: examples at a time; by default as in :func:`tpv.estimate`.

    Attributes:
        lin: the model whose predictions are z.
        predictions: z* of each batch, zero at padded positions.
        examples: n.
        outputs: nK, the number of terms that the loss averages over; padded positions do not count.
        dimensions: of the noise: n(K − 1) where outputs are centered, else nK.
        magnitude: the mean of |f*| over examples and outputs.

    Cost: one forward pass.
    """

    def __init__(
        self, lin: Linearization, data: object, *, center: bool, chunk_size: int | None = None
    ) -> None:
        self.lin = lin.reading(centered if center else same)
        self.center = center
        self.data = batches(data)
        self.predictions: list[Tensor] = []
        self.examples = self.outputs = self.dimensions = 0
        total = 0.0
        raw, checked = lin.reading(same), set[int]()
        for batch in self.data:
            check_device(lin.model, lin.used(batch))
            size = batch_size(batch)
            if size not in checked:
                check_outputs(raw, batch)
                checked.add(size)
            if not self.predictions:
                self.chunk_size = chunk_size or choose_chunk_size(raw, batch, backward=True)
            f = torch.cat([raw.displaced(part, {}) for part in self.parts(batch)])
            self.examples += size
            mask = mask_of(batch, f)
            counted = f if mask is None else (f * mask)
            total += counted.double().abs().sum().item()
            counted_outputs = f.numel() if mask is None else int(mask.double().expand_as(f).sum().item())
            classes = f.shape[class_axis(f)] if center and f.ndim > 1 else 1
            self.outputs += counted_outputs
            self.dimensions += counted_outputs // classes * max(classes - 1, 1)
            self.predictions.append(self._read(f, batch))
        if not self.predictions:
            raise TPVError("the training data is empty: it gave no batch.")
        if not all(z.isfinite().all() for z in self.predictions):
            raise TPVError("the network's outputs on the training data are NaN or infinite.")
        if not self.outputs:
            raise TPVError("every position of the training data is padding: there is nothing to fit.")
        self.magnitude = total / self.outputs

    def read(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches with the predictions on them.

        Raises:
            TPVError: if there are not as many examples as at the first reading.
        """
        missing = object()
        for batch, z in itertools.zip_longest(self.data, self.predictions, fillvalue=missing):
            if batch is missing or not isinstance(z, Tensor) or batch_size(batch) != len(z):
                raise TPVError(
                    f"the training data had {self.examples} examples at the first reading and has others "
                    "now: give the same examples in the same batches at every reading."
                )
            yield batch, z

    def parts(self, batch: Any, step: int | None = None) -> Iterator[Any]:
        """A batch in chunks that fit in memory, or of ``step`` examples."""
        return chunks(batch, step or self.chunk_size)

    def _read(self, f: Tensor, batch: Any) -> Tensor:
        """Centered where the loss is, and zero at padded positions."""
        z, mask = self.lin.output.coordinates(f, f), mask_of(batch, f)
        return z if mask is None else z * mask

    @property
    def rows(self) -> int:
        """Length of a vector over all outputs of all examples, padded positions included."""
        return sum(z.numel() for z in self.predictions)

    def chunks(self, step: int | None = None) -> Iterator[tuple[Any, slice]]:
        """All examples in order, ``step`` or as many at a time as fit in memory, with their places in a
        vector over all outputs.
        """
        start = 0
        for batch, z in self.read():
            yield from self.placed(batch, z.numel() // len(z), start, step)
            start += z.numel()

    def placed(
        self, batch: Any, outputs: int, start: int, step: int | None = None
    ) -> Iterator[tuple[Any, slice]]:
        """The :meth:`parts` of a batch with their places, from ``start`` on, in a vector with so many outputs
        for each example.
        """
        for part in self.parts(batch, step):
            stop = start + batch_size(part) * outputs
            yield part, slice(start, stop)
            start = stop

    def check_order(self, z: Tensor, places: slice) -> None:
        """Refuse data that changed since they were first read.

        Raises:
            TPVError: if outputs at w* are not those of the first pass.
        """
        expected = self.flat[places].view_as(z)
        scale = max(z.abs().max().item(), expected.abs().max().item(), math.ulp(0.0))
        if ((z - expected).abs().max() / scale).item() > repeatability(z.dtype):
            raise TPVError(
                "the training data comes in another order, or changed, from one pass to the next: "
                "switch off shuffling and random augmentation in its DataLoader."
            )

    @functools.cached_property
    def flat(self) -> Tensor:
        """``predictions`` as one vector over all outputs."""
        return flattened(self.predictions)

    def noise(self, generator: torch.Generator) -> list[Tensor]:
        """Standard normal noise for each batch, in the form of ``predictions``; what the loss does not see is
        projected out.
        """
        drawn = []
        for batch, z in self.read():
            drawn.append(self._read(torch.randn(z.shape, generator=generator).to(z), batch))
        return drawn


def flattened(batches: list[Tensor]) -> Tensor:
    """One vector over all outputs of all batches."""
    return torch.cat([z.reshape(-1) for z in batches])
