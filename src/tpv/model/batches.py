"""Batches as people write them: tensors, tuples, mappings; their size, device and slices."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tpv.common.errors import TPVError

LABELS = ("label", "labels", "target", "targets")
_TENSOR_BATCH = 256


def batches(data: object) -> Iterable[Any]:
    """A re-iterable of batches from a tensor of inputs or from a re-iterable of batches.

    Raises:
        TPVError: for a one-shot iterator, for a single batch given as data, or for what cannot be iterated.
    """
    if isinstance(data, Tensor):
        if data.ndim == 0 or len(data) == 0:
            raise TPVError("data is an empty tensor: give at least one example along the first axis.")
        return _TensorBatches(data)
    if isinstance(data, Mapping | tuple | str | bytes):
        raise TPVError(
            f"data is a single {type(data).__name__}, not a collection of batches: wrap one batch in a list, "
            "[batch]."
        )
    if not isinstance(data, Iterable):
        raise TPVError(
            "data must be a tensor or an iterable of batches, for example a DataLoader; got "
            f"{type(data).__name__}."
        )
    if isinstance(data, Iterator):
        raise TPVError(
            "data is a one-shot iterator, and the data is read more than once: give the DataLoader, a list "
            "of batches or a tensor."
        )
    if isinstance(data, list):
        return [batch for batch in data if batch_size(batch)] if any(map(_is_empty, data)) else data
    return _NonEmpty(data)


def _is_empty(batch: Any) -> bool:
    return any(t.ndim and not len(t) for t in tensors(batch)) and batch_size(batch) == 0


class _NonEmpty:
    """The batches of a loader that hold examples: filters and random sampling may leave none in some."""

    def __init__(self, data: Iterable[Any]) -> None:
        self._data, self.dataset = data, getattr(data, "dataset", None)

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch in self._data if not _is_empty(batch))


class _TensorBatches:
    def __init__(self, data: Tensor) -> None:
        self._parts = data.split(_TENSOR_BATCH)
        self.examples = len(data)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def count_examples(data: object) -> int | None:
    """Number of examples if it is known without reading the data, else None."""
    if isinstance(data, _TensorBatches):
        return data.examples
    if isinstance(data, list | tuple):
        return sum(batch_size(batch) for batch in data)
    dataset = getattr(data, "dataset", None)
    try:
        return len(dataset) if dataset is not None else None
    except TypeError:
        return None


def inputs(batch: Any) -> Any:
    """The part of a batch that :func:`call_model` uses."""
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABELS}
    return batch[0] if isinstance(batch, list | tuple) else batch


def call_model(model: torch.nn.Module, batch: Any) -> Any:
    """The default ``forward``: a tensor or a tuple's first element as input, a mapping as keywords without
    labels.
    """
    used = inputs(batch)
    return model(**used) if isinstance(batch, Mapping) else model(used)


def tensors(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a batch.

    Raises:
        TPVError: for a ``PackedSequence``, whose tensors have no axis of examples.
    """
    if isinstance(batch, PackedSequence):
        raise TPVError(
            "the batch holds a PackedSequence, whose first axis counts steps and not examples: give "
            "(padded inputs, lengths), and pack them in forward=lambda model, batch: ..."
        )
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors(value)


def batch_size(batch: Any) -> int:
    """Length of the first axis of the first tensor that has one.

    Raises:
        TPVError: if the batch holds no such tensor.
    """
    for tensor in tensors(batch):
        if tensor.ndim:
            return len(tensor)
    hint = " Make tensors of arrays with torch.from_numpy." if hasattr(batch, "__array__") else ""
    raise TPVError(
        f"a batch of type {type(batch).__name__} holds no tensor with a batch axis: "
        f"a batch is a tensor, a tuple whose first element is the input, or a mapping of keywords.{hint}"
    )


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor replaced by ``change(tensor)``, in the order of :func:`tensors`."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping | list | tuple):
        return _rebuilt(batch, [map_tensors(value, change) for value in _values(batch)])
    return batch


def _values(batch: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> list[Any]:
    return list(batch.values() if isinstance(batch, Mapping) else batch)


def _rebuilt(batch: Any, values: list[Any]) -> Any:
    """A container of the batch's own type with other values."""
    if isinstance(batch, Mapping):
        if not isinstance(batch, MutableMapping):
            return dict(zip(batch, values, strict=True))
        copied = copy.copy(batch)
        for key, value in zip(batch, values, strict=True):
            copied[key] = value
        return copied
    if isinstance(batch, list):
        same_type = copy.copy(batch)
        same_type[:] = values
        return same_type
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def narrow(batch: Any, start: int, stop: int, size: int) -> Any:
    """Examples start..stop of a batch of ``size``, contiguous; what has no batch axis of that size stays
    whole.
    """
    return rows_of(batch, range(start, stop), size)


def chunks(batch: Any, step: int) -> Iterator[Any]:
    """A batch in chunks of ``step`` examples, the last perhaps shorter."""
    size = batch_size(batch)
    for start in range(0, size, step):
        yield narrow(batch, start, min(start + step, size), size)


def ends(batch: Any, size: int) -> Any:
    """The first and the last example of a batch of ``size``."""
    return rows_of(batch, sorted({0, size - 1}), size)


def duplicated(batch: Any) -> Any:
    """A batch of one example with that example twice."""
    return rows_of(batch, [0, 0], 1)


def has_plain_rows(batch: Any, size: int) -> bool:
    """Whether some of the examples come as rows that are not those of a tensor, such as strings, dicts or
    tensors of several lengths.
    """
    return isinstance(batch, Mapping | list | tuple) and any(
        _is_rows(value, size) or has_plain_rows(value, size) for value in _values(batch)
    )


def _is_array(value: Any) -> bool:
    """Whether it is a NumPy array; without NumPy, nothing is."""
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_rows(value: Any, size: int) -> bool:
    """Whether an entry of a batch has one element for each example, and is not itself a list of columns."""
    if isinstance(value, Tensor | Mapping | str | bytes) or hasattr(value, "_fields"):
        return False
    if _is_array(value):
        return value.ndim > 0 and len(value) == size
    if not isinstance(value, Sequence) or len(value) != size:
        return False
    leaves = [t for element in value for t in tensors(element)]
    return not leaves or not all(per_example(t, size) for t in leaves)


def rows_of(batch: Any, rows: Sequence[int], size: int) -> Any:
    """The rows examples of a batch of ``size``; what has no batch axis of that size is kept whole.

    Tensors and arrays are cut along their first axis, and any other sequence of ``size`` elements is cut
    too, unless it holds tensors that all are.

    Raises:
        TPVError: for what may hold the examples and cannot be cut: an iterator, a set, an object.
    """
    if isinstance(batch, Tensor):
        index = slice(rows.start, rows.stop) if isinstance(rows, range) else list(rows)
        return batch[index].contiguous() if per_example(batch, size) else batch
    if not isinstance(batch, Mapping | list | tuple):
        return batch
    return _rebuilt(batch, [_rows_of_entry(value, rows, size) for value in _values(batch)])


def _rows_of_entry(value: Any, rows: Sequence[int], size: int) -> Any:
    if not _is_rows(value, size):
        _refuse_uncuttable(value, size)
        return rows_of(value, rows, size)
    if _is_array(value):
        return value[list(rows)]
    elements = [value[i] for i in rows]
    return _rebuilt(value, elements) if isinstance(value, list | tuple) else elements


def _refuse_uncuttable(value: Any, size: int) -> None:
    plain = isinstance(value, Tensor | Mapping | Sequence | str | bytes) or _is_array(value)
    counted = isinstance(value, Sized) and not isinstance(value, type) and len(value) == size
    if not plain and (isinstance(value, Iterator) or counted):
        raise TPVError(
            f"the batch holds a {type(value).__name__} that may belong to its {size} examples, and it cannot "
            "be cut into them: give a tensor, an array or a list with one element for each example."
        )


def per_example(tensor: Tensor, size: int) -> bool:
    """Whether the first axis counts the ``size`` examples of a batch."""
    return tensor.ndim > 0 and len(tensor) == size


def move(batch: Any, device: torch.device | str) -> Any:
    """The batch with every tensor on ``device``."""
    return map_tensors(batch, lambda t: t.to(device))
