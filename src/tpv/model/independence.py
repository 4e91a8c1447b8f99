"""Whether the outputs of an example depend on that example alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.model.batches import batch_size, narrow, rows_of
from tpv.model.float64 import everywhere, precise
from tpv.model.linearization import Linearization

_ROWS, _MANY = 9, 32


def repeatability(dtype: torch.dtype) -> float:
    """How much two passes over the same examples may differ, relative to the largest output."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)


def check_rows(lin: Linearization, batch: Any) -> None:
    """Compare the first, the middle and the last of some examples alone, and all in reversed order, with
    what they are together; in float64 where the model runs in it.

    Raises:
        TPVError: if one differs.

    Cost: five forward passes over at most nine examples, fewer where memory runs out.
    """
    _with_less_memory(lambda most: _check_some(lin, batch, most), min(batch_size(batch), _ROWS))


@torch.no_grad()
def _check_some(lin: Linearization, batch: Any, most: int) -> None:
    size = batch_size(batch)
    rows = sorted({*range(most - 1), size - 1})
    wide, some, exact = precise(lin, rows_of(batch, rows, size))
    with everywhere(exact):
        together = wide(some)
        if not together.isfinite().all():
            return  # what reads all examples says where it comes from
        own = max(repeatability(t) for t in (together.dtype, *(w.dtype for w in wide.weights.values())))
        allowed = (1e-6 if exact else own) * together.abs().max().item()
        for what, row, expected in _others(wide, some, together):
            if row.shape != expected.shape or not bool(((row - expected).abs() <= allowed).all()):
                raise TPVError(_sentence(lin.model, what))


def check_last(lin: Linearization, batch: Any, n: int) -> None:
    """Compare the last of the first n examples, at most 32, alone with what it is among them, for what
    depends on how many examples there are, such as the capacity of experts.

    Raises:
        TPVError: if it differs.

    Cost: a forward pass over these examples, none where :func:`check_rows` has seen as many.
    """
    _with_less_memory(lambda most: _check_among(lin, batch, most), min(n, _MANY))


@torch.no_grad()
def _check_among(lin: Linearization, batch: Any, n: int) -> None:
    if n <= _ROWS:
        return
    size = batch_size(batch)
    last, alone = lin(narrow(batch, 0, n, size))[-1:], lin(narrow(batch, n - 1, n, size))
    own = max(repeatability(t) for t in (last.dtype, *(w.dtype for w in lin.weights.values())))
    if alone.shape != last.shape or (last - alone).abs().max() > own * last.abs().max():
        raise TPVError(_sentence(lin.model, f"example {n - 1} alone and among {n}"))


def _with_less_memory(check: Callable[[int], None], most: int) -> None:
    """A check of so many examples, or of half as many where memory runs out, and so on."""
    try:
        check(most)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or most == 1:
            raise
        _with_less_memory(check, most // 2)


def _others(lin: Linearization, some: Any, together: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What was compared, and both outputs."""
    n = batch_size(some)
    if n == 1:
        return
    for i in sorted({0, n // 2, n - 1}):
        yield f"example {i} alone and among {n}", lin(rows_of(some, [i], n)), together[i : i + 1]
    reversed_order = lin(rows_of(some, list(range(n))[::-1], n))
    yield f"{n} examples and the same in reversed order", reversed_order.flip(0), together


def _sentence(model: nn.Module, what: str) -> str:
    names = (n or "the model" for n, m in model.named_modules() if getattr(m, "batch_first", None) is False)
    time_first = next(names, "")
    hint = (
        f"{time_first} has batch_first=False and takes the first axis for time: set batch_first=True, or "
        "give batches with the examples first and transpose them in forward=."
        if time_first
        else "If the first axis of the batch is time or another one, put the examples first and transpose "
        "them in forward=lambda model, batch: ..."
    )
    return (
        f"an example's outputs change with the other examples of its batch ({what} differ): the first axis "
        "must count examples, without statistics, sorting, sums or mixing across it. TPV is an average over "
        f"examples and is not defined for it. {hint}"
    )
