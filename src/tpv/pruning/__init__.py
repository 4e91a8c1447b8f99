"""Structured and unstructured pruning by how far the predictions move."""

from tpv.pruning.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.groups import ChannelGroup, Member
from tpv.pruning.scores import ChannelScores, GroupScores
from tpv.pruning.scoring import freeze, score

__all__ = ["JBR", "JC", "ChannelGroup", "ChannelScores", "Criterion", "GroupScores", "Member", "TPVImportance", "freeze", "score"]
