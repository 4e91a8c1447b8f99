"""Structured and unstructured pruning by how far the predictions move."""

from tpv.pruning.allocation import Allocation, Cost, allocate
from tpv.pruning.baselines import Magnitude, Random
from tpv.pruning.checkpoint import load, save
from tpv.pruning.compensation import compensate
from tpv.pruning.costs import module_macs, parameters
from tpv.pruning.cotangents import Frozen, freeze
from tpv.pruning.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.driver import prune
from tpv.pruning.groups import ChannelGroup, Member
from tpv.pruning.places import apply_masks
from tpv.pruning.recalibration import recalibrate
from tpv.pruning.result import PruningResult, PruningStep
from tpv.pruning.scores import ChannelScores, GroupScores
from tpv.pruning.scoring import score
from tpv.pruning.shortcuts import replace_padding_shortcuts
from tpv.pruning.target import Target
from tpv.pruning.unstructured import weight_scores
from tpv.pruning.weight_scores import WeightScores

__all__ = [
    "JBR",
    "JC",
    "Allocation",
    "ChannelGroup",
    "ChannelScores",
    "Cost",
    "Criterion",
    "Frozen",
    "GroupScores",
    "Magnitude",
    "Member",
    "PruningResult",
    "PruningStep",
    "Random",
    "TPVImportance",
    "Target",
    "WeightScores",
    "allocate",
    "apply_masks",
    "compensate",
    "freeze",
    "load",
    "module_macs",
    "parameters",
    "prune",
    "recalibrate",
    "replace_padding_shortcuts",
    "save",
    "score",
    "weight_scores",
]
