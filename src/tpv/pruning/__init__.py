"""Structured and unstructured pruning by how far the predictions move."""

from tpv.pruning.allocation import Allocation, Cost, allocate
from tpv.pruning.checkpoint import load, save
from tpv.pruning.compensation import compensate
from tpv.pruning.costs import module_macs, parameters
from tpv.pruning.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.driver import prune
from tpv.pruning.groups import ChannelGroup, Member
from tpv.pruning.recalibration import recalibrate
from tpv.pruning.result import PruningResult, PruningStep
from tpv.pruning.scores import ChannelScores, GroupScores
from tpv.pruning.scoring import freeze, score
from tpv.pruning.target import Target

__all__ = [
    "JBR",
    "JC",
    "Allocation",
    "ChannelGroup",
    "ChannelScores",
    "Cost",
    "Criterion",
    "GroupScores",
    "Member",
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
    "save",
    "score",
]
