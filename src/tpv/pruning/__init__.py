"""Which weights and channels to remove, by how much the predictions move without them."""

from tpv.pruning.places import apply_masks
from tpv.pruning.shortcuts import replace_padding_shortcuts
from tpv.pruning.unstructured import weight_scores
from tpv.pruning.weight_scores import WeightScores

__all__ = ["WeightScores", "apply_masks", "replace_padding_shortcuts", "weight_scores"]
