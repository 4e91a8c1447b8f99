"""Means over calibration sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tpv.common.stats import Estimate


def over_seeds(values: Sequence[Estimate]) -> Estimate:
    """The mean over calibration sets; its standard error is that of the test images, which all share, and of
    the sets together.
    """
    mean = sum(v.value for v in values) / len(values)
    images = sum(v.stderr for v in values) / len(values)
    sets = (
        math.sqrt(sum((v.value - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        if len(values) > 1
        else 0.0
    )
    return Estimate(mean, math.hypot(images, sets), sets)


def percents(value: Estimate) -> str:
    """'86.2 ± 1.1', in percent."""
    return f"{100 * value.value:.1f} ± {100 * value.stderr:.1f}"
