"""Channel scores with their uncertainty."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tpv.common.format import table
from tpv.pruning.scores.greedy import Terms
from tpv.pruning.scores.reliability import split_half


@dataclass
class Sums:
    """Additive sums over examples: of scores and their squares, in all and over the even and the odd ones."""

    total: Tensor
    squares: Tensor
    halves: Tensor
    count: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(2))
    seen: int = 0

    @staticmethod
    def zero(channels: int) -> Sums:
        """Nothing yet."""
        zeros = torch.zeros(4, channels, dtype=torch.float64)
        return Sums(zeros[0], zeros[1], zeros[2:])

    def add(self, scores: Tensor, counted: Tensor) -> None:
        """Add examples (N, channels), zero where they do not count."""
        self.total += scores.sum(0)
        self.squares += scores.square().sum(0)
        self.count += int(counted.sum())
        for half in (0, 1):
            mine = (torch.arange(len(scores)) + self.seen) % 2 == half
            self.halves[half] += scores[mine].sum(0)
            self.counts[half] += counted[mine].sum()
        self.seen += len(scores)


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

    @staticmethod
    def from_sums(
        names: Sequence[str],
        widths: Sequence[int],
        sums: Sums,
        metadata: dict[str, Any],
        terms: Terms | None = None,
    ) -> ChannelScores:
        """Means, standard errors and reliabilities."""
        n = sums.count
        mean = sums.total / n
        variance = (
            (sums.squares / n - mean.square()).clamp(min=0) / (n - 1)
            if n > 1
            else torch.full_like(mean, math.nan)
        )
        halves = sums.halves / sums.counts.unsqueeze(1)
        parts = zip(
            mean.split(list(widths)),
            variance.sqrt().split(list(widths)),
            halves.split(list(widths), 1),
            strict=True,
        )
        groups = {
            name: GroupScores(m, s, split_half(*h)) for name, (m, s, h) in zip(names, parts, strict=True)
        }
        return ChannelScores(groups, split_half(*halves), metadata, terms)

    def __getitem__(self, name: str) -> GroupScores:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def to_json(self) -> str:
        """Everything as JSON."""
        groups = {
            name: {"value": g.value.tolist(), "stderr": g.stderr.tolist(), "reliability": g.reliability}
            for name, g in self.groups.items()
        }
        return json.dumps(
            {"groups": groups, "reliability": self.reliability, "metadata": self.metadata}, indent=1
        )

    def __str__(self) -> str:
        rows = []
        for name, group in self.groups.items():
            cells = (
                f"{group.value[i]:.3g} ± {group.stderr[i]:.1g}"
                for i in (group.value.argmin(), group.value.argmax())
            )
            rows.append((name, str(len(group.value)), *cells, f"{group.reliability:.2f}"))
        head = table(("group", "channels", "lowest", "highest", "reliability"), rows)
        asked = f"{self.metadata['criterion']}, {self.metadata['examples']} examples"
        return f"{head}\n\n{asked}; over all channels reliability {self.reliability:.3f}"

    __repr__ = __str__
