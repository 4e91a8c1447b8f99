"""Structured pruning by how much the predictions change."""

from tpv.allocation.knapsack import Allocation, Cost, allocate
from tpv.model.costs import module_macs, parameters
from tpv.model.shortcuts import replace_padding_shortcuts
from tpv.pruning.channels.groups import ChannelGroup, Member
from tpv.pruning.files.checkpoint import load, save
from tpv.pruning.prune import prune
from tpv.pruning.repair.compensation import compensate
from tpv.pruning.repair.recalibration import recalibrate
from tpv.pruning.result import PruningResult
from tpv.pruning.scores.channel_scores import ChannelScores, GroupScores
from tpv.pruning.scores.cotangents import Frozen, freeze
from tpv.pruning.scores.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.scores.scoring import score
from tpv.pruning.step import PruningStep
from tpv.pruning.task import PruningConfig
from tpv.pruning.widths.budget import Target

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
    "Member",
    "PruningConfig",
    "PruningResult",
    "PruningStep",
    "TPVImportance",
    "Target",
    "allocate",
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
]
