"""Removing channels one after the other by what each adds to those that are gone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpv.common.errors import TPVError


@dataclass(frozen=True, eq=False)
class Terms:
    r"""The change of the predictions with each channel, along random directions v.

    Attributes:
        each: (M, C) :math:`v^\top J_g w_g` for M pairs of example and probe; a score is the mean square of a
            column.
        before: (M,) the change so far, :math:`v^\top(f_\mathrm{unpruned} - f)`.
    """

    each: Tensor
    before: Tensor


class Elimination:
    r"""A greedy order of removal.

    With :class:`Terms` the damage of removing a set S is :math:`\frac1M \|m + \sum_{g \in S} t_g\|^2`, m the
    change so far, and the next to go is the channel that adds least to it; without, that of the lowest score.

    Example:
        >>> import torch
        >>> opposite = torch.tensor([[1.0, -1.0, 0.5]])  # the second undoes what the first does
        >>> Elimination(opposite.square().mean(0), Terms(opposite, torch.zeros(1))).order()[0].tolist()
        [2, 1, 0]
    """

    def __init__(self, values: Tensor, terms: Terms | None = None) -> None:
        if not values.isfinite().all():
            raise TPVError("the scores are NaN or infinite.")
        self._values, self._terms = values.double().cpu(), terms
        self._change = None if terms is None else terms.before.clone()
        self._closed = torch.zeros(len(values), dtype=torch.bool)

    def keep(self, channels: Tensor) -> None:
        """Never remove these, given as a mask."""
        self._closed |= channels

    @property
    def finished(self) -> bool:
        """Whether nothing is left to remove."""
        return bool(self._closed.all())

    def lowest(self) -> int | None:
        """The next to go, None if nothing is left."""
        if self.finished:
            return None
        return int(self.added().masked_fill(self._closed, torch.inf).argmin())

    def added(self) -> Tensor:
        """(C,) what each would add to the damage."""
        if self._terms is None or self._change is None:
            return self._values
        return self._values + 2 * (self._change @ self._terms.each).double() / len(self._change)

    def remove(self, channel: int) -> None:
        """Count the channel as gone."""
        self._closed[channel] = True
        if self._terms is not None and self._change is not None:
            self._change += self._terms.each[:, channel]

    def order(self) -> tuple[Tensor, Tensor]:
        """All channels, first to last, and the greatest damage so far when each is gone."""
        order, damage, total = [], [], 0.0
        while (channel := self.lowest()) is not None:
            total += self.added()[channel].item()
            self.remove(channel)
            order.append(channel)
            damage.append(total)
        return torch.tensor(order), torch.tensor(damage, dtype=torch.float64).cummax(0).values
