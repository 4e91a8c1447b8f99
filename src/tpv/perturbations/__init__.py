"""Laws of weight displacements, one mechanism per file."""

from tpv.perturbations.base import DiagonalPerturbation, Perturbation, Sum
from tpv.perturbations.displacement import Displacement
from tpv.perturbations.isotropic import Isotropic
from tpv.perturbations.label_noise import LabelNoise
from tpv.perturbations.masking import Masking
from tpv.perturbations.quantization import Quantization
from tpv.perturbations.retraining import Retraining
from tpv.perturbations.sgd import SGDNoise

__all__ = [
    "DiagonalPerturbation",
    "Displacement",
    "Isotropic",
    "LabelNoise",
    "Masking",
    "Perturbation",
    "Quantization",
    "Retraining",
    "SGDNoise",
    "Sum",
]
