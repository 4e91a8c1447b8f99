"""Structured and unstructured pruning by how far the predictions move."""

from tpv.pruning.allocation import Allocation, Cost, allocate
from tpv.pruning.checkpoint import load, save
from tpv.pruning.costs import module_macs, parameters
from tpv.pruning.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.groups import ChannelGroup, Member
from tpv.pruning.scores import ChannelScores, GroupScores
from tpv.pruning.scoring import freeze, score

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
    "TPVImportance",
    "allocate",
    "freeze",
    "load",
    "module_macs",
    "parameters",
    "save",
    "score",
]
