"""Displacements that come from training: fits by the kernel, and retraining."""

from tpv.training.fits import Fit, GradientDescent, Interpolation, Ridge
from tpv.training.label_noise import LabelNoise
from tpv.training.retraining import Retraining

__all__ = ["Fit", "GradientDescent", "Interpolation", "LabelNoise", "Retraining", "Ridge"]
