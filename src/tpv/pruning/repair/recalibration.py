"""New running statistics for BatchNorm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.model.batches import batches, call_model
from tpv.model.linearization import Forward
from tpv.model.twin import twin_of
from tpv.model.watch import watch_of


@torch.no_grad()
def recalibrate(model: nn.Module, data: object, *, forward: Forward | None = None) -> None:
    """Replace every BatchNorm's running mean and variance, in place, by those of its inputs: averages over
    the batches.

    Everything else stays in evaluation mode, dropout included. Where the data or the model raises, the model
    is left as it was.

    Args:
        model, data, forward: as in :func:`tpv.estimate`; batches of at least some dozens of examples.

    Raises:
        TPVError: for data without batches.

    Cost: one forward pass.

    Example:
        >>> import torch
        >>> from tpv.pruning.repair.recalibration import recalibrate
        >>> norm, x = torch.nn.BatchNorm1d(2).eval(), torch.randn(64, 2)
        >>> recalibrate(norm, x)
        >>> bool(torch.allclose(norm.running_mean, x.mean(0)))
        True
    """
    parts = batches(data)
    if not _norms(model):
        return
    with twin_of(model, forward) as (twin, run):
        for norm in _norms(twin):
            for name, buffer in norm.named_buffers(recurse=False):
                setattr(norm, name, buffer.clone())
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        count = 0
        for batch in parts:
            with nullcontext() if count else watch_of(twin).forward():
                (run or call_model)(twin, batch)
            count += 1
        statistics = [dict(norm.named_buffers(recurse=False)) for norm in _norms(twin)]
    if not count:
        raise TPVError("data is empty: it gave no batch.")
    for norm, new in zip(_norms(model), statistics, strict=True):
        for name, buffer in norm.named_buffers(recurse=False):
            buffer.copy_(new[name])


def _norms(model: nn.Module) -> list[Any]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]
