"""Our criteria, as the published ones are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.pruning.baselines import CRITERIA
from experiments.pruning.calibration import BATCH, Calibration, Criterion
from tpv.integrations.torch_pruning import JBRImportance, JCImportance, TPVGroupImportance


@dataclass
class Ours:
    """An importance, which follows the model by itself."""

    importance: TPVGroupImportance | JBRImportance | JCImportance

    def refresh(self, model: nn.Module) -> None:
        pass

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        return self.importance(group)


def _labelled(data: Calibration) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(data.images, data.labels), BATCH)


OURS: dict[str, Callable[[nn.Module, Calibration], Criterion]] = {
    "JC by example": lambda model, data: Ours(JCImportance(_labelled(data))),
    "JBR by example": lambda model, data: Ours(JBRImportance(data.images)),
    "TPV": lambda model, data: Ours(TPVGroupImportance(data.images, generator=data.seed)),
    "TPV, jointly": lambda model, data: Ours(
        TPVGroupImportance(data.images, interactions=True, generator=data.seed)
    ),
    "TPV, exact": lambda model, data: Ours(TPVGroupImportance(data.images, probes=10, generator=data.seed)),
    "TPV, all parameters": lambda model, data: Ours(
        TPVGroupImportance(data.images, parameters="all", generator=data.seed)
    ),
    "TPV in KL": lambda model, data: Ours(TPVGroupImportance(data.images, output="kl", generator=data.seed)),
}
"""Name → criterion, as in :data:`CRITERIA`."""

EVERY = CRITERIA | OURS
COMPARED = (*CRITERIA, "JC by example", "JBR by example", "TPV", "TPV, jointly")
"""Those whose accuracy is compared; the others differ in a detail."""
