"""The cotangent sweep and its per-layer formulas."""

from tpv.jacobian.sweep import Sweep

__all__ = ["Sweep"]
