"""Label noise in a report: its words, its default, and when that is left out."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from tpv.ntk.jacobian import GRAM_BYTES
from tpv.ntk.operator import DENSE_BYTES, dense_bytes
from tpv.results import TPVResult
from tpv.training import LabelNoise
from tpv.training.fits import GradientDescent

NOISE = LabelNoise(std=0.1, fit=GradientDescent(lr=None, steps=50), relative=True)
NOISE_EXAMPLES = 128
_JACOBIAN = 2**31
ASK = f'-p "{NOISE!r}"'

WHAT = (
    "Random noise is added to the network’s own outputs on the training inputs, and the network is trained "
    "from its current weights to fit them: how much do its predictions change?"
)
IN_SAMPLE = (
    "In sample, the fit reproduces part of the very noise that it is evaluated with (its leverage), which "
    "unseen inputs do not see."
)
CROSS_FITTED = (
    "Cross-fitted, the noise of one half of the training inputs is evaluated on the other half. Half as many "
    "examples constrain the network less, so compare this with the noise of the same halves on test inputs."
)


def noise_unit(result: TPVResult) -> str:
    """What a value of label noise is in."""
    if result.metadata["output"] == "centered logits":
        return "squared units of the centered logits, the outputs minus their mean over the classes"
    return result.metadata["unit"] or "squared units of the outputs"


def short(text: str) -> str:
    """Numbers in a text with four digits: "lr=0.00036748166" as "lr=0.0003675"."""
    return re.sub(r"\d+\.\d{4,}(e[-+]?\d+)?", lambda m: f"{float(m[0]):.4g}", text)


def too_expensive(metadata: dict[str, Any], examples: int) -> str | None:
    """Why label noise on so many training examples is not for every report, None where it is.

    Args:
        metadata: of a result for the same network and data.
        examples: that the noise would be fitted on.
    """
    outputs, parameters = metadata["outputs"], metadata["parameters"]
    itemsize = getattr(torch, metadata["dtype"]).itemsize
    rows = examples * outputs
    if examples < 2:
        return (
            "it is evaluated across two halves of the training examples, and there is one example: give a "
            "higher --limit."
        )
    size = f"{examples} training examples × {outputs:,} outputs"
    if (needed := dense_bytes(rows, itemsize, parameters)) > DENSE_BYTES:
        return (
            f"the kernel of {size} takes {needed / 2**30:,.1f} GiB, more than is written out. Ask for it by "
            f"{ASK}, which then takes draws of the noise{_fewer(itemsize, outputs)}."
        )
    if rows * parameters > _JACOBIAN:
        return (
            f"the gradients of {size} by {parameters:,} weights are {rows * parameters / 1e9:,.1f} billion "
            f"numbers, more work than the rest of this report. Ask for it by {ASK}, or make it smaller by "
            f"--label-noise-examples {_JACOBIAN // (outputs * parameters)}."
        )
    return None


def _fewer(itemsize: int, outputs: int) -> str:
    """How many examples would do for any number of weights."""
    examples = math.isqrt((DENSE_BYTES - 2 * GRAM_BYTES) // (itemsize + 32)) // outputs
    return f", or make it smaller by --label-noise-examples {examples}" if examples > 1 else ""
