"""Results: numbers with their uncertainty and provenance."""

from tpv.result.linearity import LinearityResult
from tpv.result.spectrum import Spectrum
from tpv.result.stability import StabilityResult
from tpv.result.tpv_result import TPVResult

__all__ = ["LinearityResult", "Spectrum", "StabilityResult", "TPVResult"]
