"""Test Prediction Variance: how much a trained network's predictions move when its weights are disturbed."""

from tpv._errors import TPVError
from tpv._stats import Estimate
from tpv.estimation import estimate, linearity, stability
from tpv.estimators import Estimator, Exact, Hutchinson, LinearizedMonteCarlo, MonteCarlo
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
from tpv.result import LinearityResult, StabilityResult, TPVResult
from tpv.weights import Weights

__all__ = [
    "DiagonalPerturbation",
    "Displacement",
    "Estimate",
    "Estimator",
    "Exact",
    "Hutchinson",
    "Isotropic",
    "LabelNoise",
    "LinearityResult",
    "LinearizedMonteCarlo",
    "Masking",
    "MonteCarlo",
    "Perturbation",
    "Quantization",
    "Retraining",
    "SGDNoise",
    "StabilityResult",
    "TPVError",
    "TPVResult",
    "Weights",
    "estimate",
    "linearity",
    "stability",
]
