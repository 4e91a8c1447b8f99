"""What a scoring pass costs, in forward+backward passes of training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.pruning.calibration import Calibration
from experiments.pruning.members import groups
from experiments.pruning.networks import Network
from experiments.pruning.ours import COMPARED, EVERY
from experiments.pruning.ranks import calibration
from tpv.common.format import table
from tpv.integrations.torch_pruning import channel_groups
from tpv.pruning import TPVImportance, score


def cost_table(network: Network, images: int, repeats: int = 5) -> str:
    """Seconds of each criterion over those of plain training passes in batches of 64, medians of alternating
    repeats.
    """
    model, data = network.model(), calibration(network, 0, images)
    groups = channel_groups(model, data.images[:2])
    passes: dict[str, Callable[[], object]] = {"forward + backward": lambda: _train(model, data)}
    passes["tpv.pruning.score"] = lambda: score(model, data.images, groups)
    passes["tpv.pruning.score, 10 probes"] = lambda: score(model, data.images, groups, TPVImportance(10))
    passes |= {name: _whole(name, network, data) for name in COMPARED if name != "random"}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, work in passes.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    unit = statistics.median(seconds["forward + backward"])
    rows = [
        (name, f"{statistics.median(s) / unit:.2f}", f"{min(s) / unit:.2f} … {max(s) / unit:.2f}")
        for name, s in seconds.items()
    ]
    return table(("a scoring pass, in forward+backwards", "median", "range"), rows)


def _train(model: nn.Module, data: Calibration) -> None:
    for x, y in zip(data.images.split(64), data.labels.split(64), strict=True):
        loss = F.cross_entropy(model(x), y)
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def _whole(name: str, network: Network, data: Calibration) -> Callable[[], list[Tensor]]:
    """Everything from the network to the scores of all groups, tracing aside."""
    model = network.model()
    all_groups, criterion = groups(model, data.images), EVERY[name](model, data)

    def work() -> list[Tensor]:
        with torch.no_grad():
            next(model.parameters()).mul_(1)  # our importances score again only when the weights have changed
        criterion.refresh(model)
        return [criterion(group) for group in all_groups]

    return work
