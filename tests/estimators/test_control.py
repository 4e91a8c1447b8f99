"""Sums of the control run add up."""

from __future__ import annotations

import pytest
import torch
from cases import randn

from tpv.estimators.control import ControlSums


@pytest.mark.parametrize("columns", [2, 3])
def test_shards_of_the_control_add_up(columns: int) -> None:
    control, drawn = randn(9, 2).square() / 100, randn(9, 4, columns, seed=1).square()
    whole, left, right, empty = (ControlSums(1) for _ in range(4))
    whole.update(control, drawn, 2)
    left.update(control[:4], drawn[:4], 2)
    right.update(control[4:], drawn[4:], 2)
    left.merge(right)
    left.merge(empty)
    empty.merge(left)
    expected = {"value": control[:, 1].mean().item()}
    if columns == 3:
        expected["variance"] = drawn[..., 2].mean().item()
    for sums in (whole, left, empty):
        assert sums.result() == pytest.approx(expected, rel=1e-12)


def test_drift_is_reported() -> None:
    sums = ControlSums(0)
    sums.update(torch.ones(3, 1), 2 * torch.ones(3, 2, 1), 1)
    with pytest.warns(UserWarning, match="without noise the predictions already change by 1, against .* 2"):
        sums.result()
