"""Rank correlation, and the reliability of a ranking."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SAMPLE = 100_000


def split_half(a: Tensor, b: Tensor) -> float:
    r"""Reliability of scores from all examples, from the scores a and b of two halves:

    .. math:: \frac{2\rho}{1 + \rho}, \qquad \rho = \text{Spearman's rank correlation of } a \text{ and } b

    (Spearman and Brown, 1910); ρ itself where it is negative, nan where all scores of a half are equal. Of
    more than 100,000 scores, a fixed random sample of as many.

    Args:
        a, b: scores of the same shape.

    Example:
        >>> import torch
        >>> round(split_half(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4])), 3)
        0.889
    """
    a, b = a.flatten(), b.flatten()
    if len(a) > _SAMPLE:
        sample = torch.randint(len(a), (_SAMPLE,), generator=torch.Generator().manual_seed(0)).to(a.device)
        a, b = a[sample], b[sample]
    rho = spearman(a, b)
    return 2 * rho / (1 + rho) if rho > 0 else rho


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors, equal numbers sharing their mean rank; nan where there is nothing to
    rank.

    Example:
        >>> import torch
        >>> round(spearman(torch.tensor([1.0, 1, 3]), torch.tensor([0.0, 5, 9])), 3)
        0.866
    """
    if not (a.isfinite() & b.isfinite()).all():
        return math.nan
    x, y = (rank - rank.mean() for rank in map(_ranks, (a, b)))
    scale = (x.square().sum() * y.square().sum()).sqrt().item()
    return (x @ y).item() / scale if scale > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = count.cumsum(0).double() - (count - 1) / 2
    return ranks[place]
