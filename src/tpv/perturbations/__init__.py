"""Distributions of weight displacements, one mechanism per file."""

from tpv.perturbations.base import DiagonalPerturbation, Perturbation, PerturbationSpec, Sum
from tpv.perturbations.displacement import Displacement
from tpv.perturbations.isotropic import Isotropic
from tpv.perturbations.masking import Masking
from tpv.perturbations.quantization import Quantization
from tpv.perturbations.sgd import SGDNoise

__all__ = [
    "DiagonalPerturbation",
    "Displacement",
    "Isotropic",
    "Masking",
    "Perturbation",
    "PerturbationSpec",
    "Quantization",
    "SGDNoise",
    "Sum",
]
