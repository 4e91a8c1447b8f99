"""``tpv.prune`` with the options of its config as arguments."""

import dataclasses

import tpv
from tpv.pruning import PruningConfig, PruningResult

_CONFIG = {field.name for field in dataclasses.fields(PruningConfig)}


def prune(*args, **options) -> PruningResult:
    config = PruningConfig(**{name: options.pop(name) for name in _CONFIG & options.keys()})
    return tpv.prune(*args, **options, config=config)
