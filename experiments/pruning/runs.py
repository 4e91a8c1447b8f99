"""Runs of ``tpv.prune``, with their numbers in the cache."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any

import torch_pruning as tp
from torch import Tensor
from training import cache_folder

import tpv
from experiments.pruning.calibration import Criterion
from experiments.pruning.networks import Network
from experiments.pruning.ranks import calibration
from tpv.pruning import PruningConfig, PruningStep


class Following:
    """A criterion that is refreshed whenever it meets another model."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion, self._model = criterion, None

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        if group._DG.model is not self._model:
            self._model = group._DG.model
            self._criterion.refresh(self._model)
        return self._criterion(group)


@dataclass(frozen=True)
class Run:
    """What a table needs of a pruning."""

    steps: tuple[PruningStep, ...]
    curves: dict[str, dict[int, float]]


def run(
    network: Network,
    name: str,
    seed: int,
    target: str,
    images: int = 512,
    test: int | None = None,
    **options: Any,
) -> Run:
    """A network pruned on random training images, once; then read from the cache.

    Args:
        name: of the run, for the cache; it must distinguish all options.
        criterion: ``(model, calibration) -> criterion`` among ``options``, by default our own.
        test: only so many test images.
    """
    file = re.sub(r"\W+", "-", f"{name} {target} {images} {test} {seed}") + ".json"
    log = cache_folder("pruning") / network.name / file
    if not log.is_file():
        log.parent.mkdir(exist_ok=True)
        model, data = network.model(), calibration(network, seed, images)
        if (make := options.pop("criterion", None)) is not None:
            options["criterion"] = Following(make(model, data))
        x, y = network.images("test", slice(test))
        names = {field.name for field in fields(PruningConfig)} & options.keys()
        config = PruningConfig(generator=seed, **{name: options.pop(name) for name in names})
        batches = list(zip(x.split(250), y.split(250), strict=True))
        tpv.prune(model, data.images, target, test=batches, config=config, **options).to_json(log)
    contents = json.loads(log.read_text(encoding="utf-8"))
    curves = {group: {int(w): v for w, v in curve.items()} for group, curve in contents["curves"].items()}
    return Run(tuple(map(PruningStep.from_dict, contents["steps"])), curves)
