"""The neural tangent kernel, and what fits do with its spectrum."""

from tpv.ntk.fits import Fit, GradientDescent, Interpolation, Ridge
from tpv.ntk.operator import NTK

__all__ = ["NTK", "Fit", "GradientDescent", "Interpolation", "Ridge"]
