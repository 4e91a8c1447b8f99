"""The neural tangent kernel of a training set."""

from tpv.ntk.operator import NTK

__all__ = ["NTK"]
