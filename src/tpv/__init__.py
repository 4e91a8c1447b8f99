"""Test Prediction Variance: how much a trained network's predictions move when its weights are disturbed."""

from tpv._errors import TPVError
from tpv._stats import Estimate
from tpv.estimation import estimate, linearity, stability
from tpv.estimators import Estimator, Exact, Hutchinson, HutchPlusPlus, LinearizedMonteCarlo, MonteCarlo
from tpv.ntk import NTK, Fit, GradientDescent, Interpolation, Ridge
from tpv.perturbations import (
    DiagonalPerturbation,
    Displacement,
    Isotropic,
    LabelNoise,
    Masking,
    Perturbation,
    Quantization,
    Retraining,
    SGDNoise,
)
from tpv.pruning.driver import prune
from tpv.result import LinearityResult, Spectrum, StabilityResult, TPVResult
from tpv.weights import Weights

__all__ = [
    "NTK",
    "DiagonalPerturbation",
    "Displacement",
    "Estimate",
    "Estimator",
    "Exact",
    "Fit",
    "GradientDescent",
    "HutchPlusPlus",
    "Hutchinson",
    "Interpolation",
    "Isotropic",
    "LabelNoise",
    "LinearityResult",
    "LinearizedMonteCarlo",
    "Masking",
    "MonteCarlo",
    "Perturbation",
    "Quantization",
    "Retraining",
    "Ridge",
    "SGDNoise",
    "Spectrum",
    "StabilityResult",
    "TPVError",
    "TPVResult",
    "Weights",
    "estimate",
    "linearity",
    "prune",
    "stability",
]
