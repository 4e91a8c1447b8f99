"""Numbers that are accepted, and those that are refused in one sentence."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tpv.common.errors import TPVError
from tpv.common.options import require_int, require_number


@pytest.mark.parametrize("value", [4, np.int64(4), np.uint8(4), torch.tensor(4).item()])
def test_ints(value: Any) -> None:
    found = require_int("Quantization", "bits", value, 1, 16)
    assert (found, type(found)) == (4, int)


@pytest.mark.parametrize("value", [True, np.True_, 4.0, np.float32(4), "4", None, 0, 17, torch.tensor(4)])
def test_what_is_no_int_in_range(value: Any) -> None:
    with pytest.raises(TPVError, match=r"^Quantization\(bits=.*\): bits must be an int in \[1, 16\]\.$"):
        require_int("Quantization", "bits", value, 1, 16)


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int8(1), Fraction(1, 2)])
def test_numbers(value: Any) -> None:
    found = require_number("Isotropic", "std", value, 0)
    assert (found, type(found)) == (float(value), float)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, -1, math.nan, math.inf, 1j])
def test_what_is_no_number_in_range(value: Any) -> None:
    with pytest.raises(TPVError, match=r"^Isotropic\(std=.*\): std must be a number in \[0, inf\)\.$"):
        require_number("Isotropic", "std", value, 0)
    with pytest.raises(TPVError, match=r"\(0, inf\)"):
        require_number("Isotropic", "std", 0, 0, open_low=True)
