"""Test Prediction Variance: how much a trained network's predictions change when its weights do."""

from typing import Any

from tpv.common.errors import TPVError
from tpv.common.event import ProgressEvent
from tpv.common.stats import Estimate
from tpv.common.warn import TPVWarning
from tpv.estimation.estimate import estimate
from tpv.estimation.linearity import linearity
from tpv.estimation.stability import stability
from tpv.estimators import (
    Auto,
    Estimator,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    LinearizedMonteCarlo,
    MonteCarlo,
)
from tpv.model.weights import Weights
from tpv.ntk import NTK
from tpv.perturbations import (
    DiagonalPerturbation,
    Displacement,
    Isotropic,
    Masking,
    Perturbation,
    PerturbationSpec,
    Quantization,
    SGDNoise,
)
from tpv.pruning.prune import prune
from tpv.results import LinearityResult, Spectrum, StabilityResult, TPVResult
from tpv.training import Fit, GradientDescent, Interpolation, LabelNoise, Retraining, Ridge

__all__ = [
    "NTK",
    "Auto",
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
    "PerturbationSpec",
    "ProgressEvent",
    "Quantization",
    "Retraining",
    "Ridge",
    "SGDNoise",
    "Spectrum",
    "StabilityResult",
    "TPVError",
    "TPVResult",
    "TPVWarning",
    "Weights",
    "estimate",
    "linearity",
    "prune",
    "stability",
]


def __dir__() -> list[str]:
    """The public names: verbs, classes, and the modules that users import."""
    return sorted([*__all__, "__version__", "demo", "pruning", "testing", "integrations"])


def __getattr__(name: str) -> Any:
    """``tpv.__version__``, read from the installed package when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tpv")
    raise AttributeError(f"module 'tpv' has no attribute {name!r}")
