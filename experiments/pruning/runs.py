"""Runs of ``tpv.prune``, kept in the cache and resumed from there."""

from __future__ import annotations

import re
from typing import Any

import torch_pruning as tp
from torch import Tensor
from training import cache_folder

import tpv
from experiments.pruning.calibration import Criterion
from experiments.pruning.networks import Network
from experiments.pruning.ranks import calibration
from tpv.pruning import PruningResult


class Following:
    """A criterion that is refreshed whenever it meets another model."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion, self._model = criterion, None

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        if group._DG.model is not self._model:
            self._model = group._DG.model
            self._criterion.refresh(self._model)
        return self._criterion(group)


def run(
    network: Network,
    name: str,
    seed: int,
    target: str,
    images: int = 512,
    test: int | None = None,
    **options: Any,
) -> PruningResult:
    """A network pruned on random training images.

    Args:
        name: of the run, for the cache; it must tell all options apart.
        criterion: ``(model, calibration) -> criterion`` among ``options``, by default our own.
        test: only so many test images.
    """
    model, data = network.model(), calibration(network, seed, images)
    make = options.pop("criterion", None)
    if make is not None:
        options["criterion"] = Following(make(model, data))
    x, y = network.images("test", slice(test))
    folder = (
        cache_folder("pruning")
        / network.name
        / re.sub(r"\W+", "-", f"{name} {target} {images} {test} {seed}")
    )
    return tpv.prune(model, data.images, target, test=_batches(x, y), generator=seed, out=folder, **options)


def _batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(250), y.split(250), strict=True))
