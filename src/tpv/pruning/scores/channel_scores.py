"""Channel scores with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpv.common.format import table
from tpv.common.ranks import split_half
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.scores.greedy import Terms


@dataclass
class ScoreSums:
    """Additive sums over examples: of scores and their squares, in all and over the even and the odd ones."""

    total: Tensor
    squares: Tensor
    halves: Tensor
    count: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(2))
    seen: int = 0

    @staticmethod
    def zero(channels: int) -> ScoreSums:
        """No examples."""
        zeros = torch.zeros(4, channels, dtype=torch.float64)
        return ScoreSums(zeros[0], zeros[1], zeros[2:])

    def update(self, scores: Tensor, counted: Tensor) -> None:
        """Add examples (N, channels), zero where they do not count."""
        self.total += scores.sum(0)
        self.squares += scores.square().sum(0)
        self.count += int(counted.sum())
        for half in (0, 1):
            mine = (torch.arange(len(scores)) + self.seen) % 2 == half
            self.halves[half] += scores[mine].sum(0)
            self.counts[half] += counted[mine].sum()
        self.seen += len(scores)

    def merge(self, other: ScoreSums) -> None:
        """Add the sums of another shard of the data."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def result(
        self, groups: Sequence[ChannelGroup], metadata: dict[str, Any], terms: Terms | None = None
    ) -> ChannelScores:
        """Means, standard errors and reliabilities of the channels of these groups."""
        n, mean = self.count, self.total / self.count
        variance = torch.full_like(mean, math.nan)
        if n > 1:
            variance = (self.squares / n - mean.square()).clamp(min=0) / (n - 1)
        halves = self.halves / self.counts.unsqueeze(1)
        widths = [group.width for group in groups]
        parts = (mean.split(widths), variance.sqrt().split(widths), halves.split(widths, 1))
        scores = {
            group.name: GroupScores(value, stderr, split_half(*half))
            for group, value, stderr, half in zip(groups, *parts, strict=True)
        }
        return ChannelScores(scores, split_half(*halves), metadata, terms)


@dataclass(frozen=True, eq=False)
class GroupScores:
    """Scores of one group's channels.

    Attributes:
        value: (C,) in squared units of the outputs.
        stderr: (C,) standard error over examples and their probes.
        reliability: Spearman correlation of the channels' scores between two halves of the examples, stepped
            up to all of them (Spearman–Brown).
    """

    value: Tensor
    stderr: Tensor
    reliability: float


@dataclass(frozen=True, eq=False, repr=False)
class ChannelScores(Mapping[str, GroupScores]):
    r"""Scores of all groups, by name.

    Attributes:
        reliability: as in :class:`GroupScores`, over all channels.
        metadata: criterion, seed, examples, versions.
        terms: of all channels, for criteria with interactions, else None.
    """

    groups: dict[str, GroupScores]
    reliability: float
    metadata: dict[str, Any]
    terms: Terms | None = None

    def __getitem__(self, name: str) -> GroupScores:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        rows = []
        for name, group in self.groups.items():
            ends = (group.value.argmin(), group.value.argmax())
            cells = (f"{group.value[i]:.3g} ± {group.stderr[i]:.1g}" for i in ends)
            rows.append((name, str(len(group.value)), *cells, f"{group.reliability:.2f}"))
        head = table(("group", "channels", "lowest", "highest", "reliability"), rows)
        source = f"{self.metadata['criterion']}, {self.metadata['examples']} examples"
        return f"{head}\n\n{source}; over all channels reliability {self.reliability:.3f}"

    __repr__ = __str__
