"""New running statistics for BatchNorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tpv.model.batches import batches, call_model
from tpv.model.linearization import Forward


@torch.no_grad()
def recalibrate(model: nn.Module, data: object, *, forward: Forward | None = None) -> None:
    """Set every BatchNorm's running mean and variance, in place, to those of its inputs: averages over the
    batches.

    Everything else stays in evaluation mode, dropout included.

    Args:
        model, data, forward: as in :func:`tpv.estimate`; batches of at least some dozens of examples.

    Cost: one forward pass.

    Example:
        >>> import torch
        >>> from tpv.pruning.repair.recalibration import recalibrate
        >>> norm, x = torch.nn.BatchNorm1d(2).eval(), torch.randn(64, 2)
        >>> recalibrate(norm, x)
        >>> bool(torch.allclose(norm.running_mean, x.mean(0)))
        True
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    kept: list[tuple[Any, bool, float | None]] = [(m, m.training, m.momentum) for m in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        for batch in batches(data) if norms else ():
            (forward or call_model)(model, batch)
    finally:
        for norm, training, momentum in kept:
            norm.training, norm.momentum = training, momentum
