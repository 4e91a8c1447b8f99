"""Label noise in a report: which examples, and when the default is left out."""

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
    "Training targets are the network’s own outputs plus random noise, and the network is fitted to them "
    "again, from its weights on: "
    "how far do its predictions move?"
)
IN_SAMPLE = "In sample a fit follows part of the very noise that it is read with, its leverage, and unseen inputs do not see that."
CROSS_FITTED = (
    "Cross-fitted, the noise of one half of the training inputs is read on the other half; half as many "
    "examples hold the network less, "
    "so that this is to be compared with the noise of the same halves on test inputs."
)

PASSES = ("train", "test", "cross-fit 1/2", "cross-fit 2/2", "halves 1/2", "halves 2/2")
"""What :func:`tpv.stability` goes through."""


def noise_unit(result: TPVResult) -> str:
    """What a value of label noise is in."""
    if result.metadata["output"] == "centered logits":
        return "squared units of the centred logits, the outputs minus their mean over the classes"
    return result.metadata["unit"] or "squared units of the outputs"


def short(text: str) -> str:
    """Numbers in a text with four digits: "lr=0.00036748166" as "lr=0.0003675"."""
    return re.sub(r"\d+\.\d{4,}(e[-+]?\d+)?", lambda m: f"{float(m[0]):.4g}", text)


def too_dear(facts: dict[str, Any], examples: int) -> str | None:
    """Why label noise on so many training examples is not for every report, None where it is.

    Args:
        facts: metadata of a result for the same network and data.
        examples: that the noise would be fitted on.
    """
    outputs, parameters = facts["outputs"], facts["parameters"]
    itemsize = getattr(torch, facts["dtype"]).itemsize
    rows = examples * outputs
    if examples < 2:
        return "it is read across two halves of the training examples, and there is one example: give a higher --limit."
    size = f"{examples} training examples × {outputs:,} outputs"
    if (needed := dense_bytes(rows, itemsize, parameters)) > DENSE_BYTES:
        fewer = (
            math.isqrt((DENSE_BYTES - 2 * GRAM_BYTES) // (itemsize + 32)) // outputs
        )  # enough for any number of weights
        hint = f", or make it smaller by --label-noise-examples {fewer}" if fewer > 1 else ""
        return (
            f"the kernel of {size} takes {needed / 2**30:,.1f} GiB, more than is written out. Ask for it by "
            f"{ASK}, which then takes "
            f"draws of the noise{hint}."
        )
    if rows * parameters > _JACOBIAN:
        return (
            f"the gradients of {size} by {parameters:,} weights are {rows * parameters / 1e9:,.1f} billion "
            "numbers, more work than the "
            f"rest of this report. Ask for it by {ASK}, or make it smaller by --label-noise-examples "
            f"{_JACOBIAN // (outputs * parameters)}."
        )
    return None
