"""Results: numbers with their uncertainty and provenance."""

from tpv.results.linearity import LinearityResult
from tpv.results.spectrum import Spectrum
from tpv.results.stability import StabilityResult
from tpv.results.tpv import TPVResult

__all__ = ["LinearityResult", "Spectrum", "StabilityResult", "TPVResult"]
