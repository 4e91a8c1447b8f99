"""The weighted hybrid criterion of Chen, Chen and Wang (arXiv 2302.08185)."""

from __future__ import annotations

import torch
import torch_pruning as tp
from torch import Tensor, nn

from experiments.pruning.members import NORMS, members


def whc(rows: Tensor) -> Tensor:
    """‖Fᵢ‖ Σⱼ≠ᵢ ‖Fⱼ‖ (1 − |cos(Fᵢ, Fⱼ)|) of filters F (n, entries)."""
    norms = rows.norm(dim=1)
    apart = norms[:, None] * norms - (rows @ rows.T).abs()
    return apart.fill_diagonal_(0).sum(1)


class WHC:
    """Summed over the convolutions and linear layers of a group, filters and input channels alike, as
    Torch-Pruning does for FPGM.
    """

    def refresh(self, model: nn.Module) -> None:
        pass

    def __call__(self, group: tp.dependency.Group) -> Tensor:
        score = torch.zeros(len(group[0].idxs))
        for member in members(group):
            if not isinstance(member.layer, NORMS):
                roots, rows = member.rows()
                score = score.to(rows.dtype).index_add(0, roots, whc(rows))
        return score
