"""How well criteria rank channels by the damage of deleting them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from experiments.pruning.baselines import CRITERIA, WITHOUT_DATA
from experiments.pruning.calibration import Calibration, Criterion
from experiments.pruning.damage import damages, root_names
from experiments.pruning.members import groups
from experiments.pruning.networks import Network


@dataclass(frozen=True)
class Rank:
    """Spearman's correlation with the 95 % bootstrap interval over channels."""

    value: float
    low: float
    high: float


def spearman(scores: Tensor, damage: Tensor, draws: int = 1000) -> Rank:
    """Of scores and damage of the same channels (C,)."""
    pairs = torch.stack([scores.double(), damage.double()], 1).numpy()
    generator = np.random.default_rng(0)
    drawn = [
        spearmanr(pairs[generator.integers(len(pairs), size=len(pairs))]).statistic for _ in range(draws)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Rank(float(spearmanr(pairs).statistic), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """A criterion's rank correlation for each set of calibration images; the interval is that of the
    first.
    """

    name: str
    ranks: tuple[Rank, ...]

    @property
    def mean(self) -> float:
        return sum(r.value for r in self.ranks) / len(self.ranks)

    @property
    def lowest(self) -> float:
        return min(r.value for r in self.ranks)

    @property
    def highest(self) -> float:
        return max(r.value for r in self.ranks)

    def __str__(self) -> str:
        spread = f"{self.lowest:5.3f} … {self.highest:.3f}" if len(self.ranks) > 1 else ""
        first = self.ranks[0]
        return f"{self.name:19} {self.mean:5.3f}   {spread:15} [{first.low:.3f}, {first.high:.3f}]"


def calibration(network: Network, seed: int, n: int = 512) -> Calibration:
    """Random training images."""
    return Calibration(*network.random_images("train", n, seed), seed)


def scores(criterion: Criterion, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """By the name of a group's root, the score of each channel."""
    criterion.refresh(model)
    all_groups = groups(model, x)
    return {
        name: criterion(group).detach()
        for name, group in zip(root_names(model, all_groups), all_groups, strict=True)
    }


def rank_table(
    network: Network,
    criteria: Mapping[str, Callable[[nn.Module, Calibration], Criterion]] = CRITERIA,
    seeds: int = 3,
    n: int = 512,
) -> list[Row]:
    """A row for each criterion, over all channels of the network together."""
    damage = damages(network)
    sets = [calibration(network, seed, n) for seed in range(seeds)]
    rows = []
    for name, make in criteria.items():
        ranks = []
        for data in sets[:1] if name in WITHOUT_DATA else sets:
            model = network.model()
            score_of = scores(make(model, data), model, data.images)
            ranks.append(spearman(torch.cat([score_of[k] for k in damage]), torch.cat(list(damage.values()))))
        rows.append(Row(name, tuple(ranks)))
    return rows
