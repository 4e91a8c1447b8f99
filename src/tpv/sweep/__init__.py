"""The cotangent sweep and its per-layer formulas."""

from tpv.sweep.sweep import Sweep

__all__ = ["Sweep"]
