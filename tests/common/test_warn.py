"""Warnings point at the user's line and come once per call."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import tpv
from tpv.common.warn import warn

MODEL, COPIES = nn.Linear(3, 1).double(), torch.ones(4, 3).double()
NOISE = tpv.LabelNoise(0.1, COPIES, tpv.Ridge(0.1))


def caught(action: str, calls: int) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        for _ in range(calls):
            tpv.stability(MODEL, COPIES, COPIES, NOISE)  # the line
    return seen


def test_warnings_point_at_the_call() -> None:
    with open(__file__, encoding="utf-8") as source:
        line = next(i for i, text in enumerate(source, 1) if text.rstrip().endswith("# the line"))
    seen = caught("always", 1)
    assert {(w.filename, w.lineno, w.category) for w in seen} == {(__file__, line, tpv.TPVWarning)}


def test_every_call_warns_once() -> None:
    assert len(caught("always", 1)) > len({str(w.message) for w in caught("always", 1)})
    for calls in (1, 3):
        seen = caught("default", calls)
        assert len(seen) == calls * len({str(w.message) for w in seen}) > 0


def test_users_filters_decide() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=tpv.TPVWarning)
        tpv.estimate(MODEL, COPIES, NOISE)
    with pytest.raises(tpv.TPVWarning, match="outside"):
        warn("outside of a call")
