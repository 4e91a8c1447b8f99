"""Many checks by one read: the same answers as one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tpv
from tpv.common.reads import moved_together, non_finite, numbers


def test_numbers_of_any_dtype_and_shape() -> None:
    scalars = [
        torch.tensor(2.5, dtype=torch.float64),
        torch.tensor([3], dtype=torch.int8),
        torch.tensor(True),
    ]
    assert numbers(scalars) == [2.5, 3.0, 1.0]
    assert numbers([]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_non_finite_tensor_is_named(dtype: torch.dtype, bad: float) -> None:
    largest = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype)
    broken = torch.ones(2, 2, dtype=dtype)
    broken[1, 0] = bad
    tensors = {"large": largest, "empty": broken[:0], "whole": torch.arange(3), "b": broken, "c": broken}
    assert non_finite(tensors) == "b"
    assert non_finite({"large": largest, "empty": broken[:0], "whole": torch.arange(3)}) is None


def test_numbers_move_to_their_devices_together() -> None:
    tensors = {"a": torch.tensor(1.0), "b": torch.tensor(2.0, dtype=torch.float64), "c": torch.ones(2)}
    moved = moved_together(tensors, dict.fromkeys(tensors, torch.device("meta")))
    assert [(t.device.type, t.dtype, t.shape) for t in moved.values()] == [
        ("meta", t.dtype, t.shape) for t in tensors.values()
    ]


class Reads(TorchDispatchMode):
    """Counts what a GPU would have to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "equal")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("estimator", [tpv.Hutchinson(1), tpv.Exact()])
def test_reads_do_not_grow_with_the_number_of_parameters(estimator: tpv.Estimator) -> None:
    counts: Counter[int] = Counter()
    for depth in (2, 12):
        torch.manual_seed(0)
        layers: list[nn.Module] = [m for _ in range(depth) for m in (nn.Linear(4, 4), nn.Tanh())]
        model, x = nn.Sequential(*layers).eval(), torch.randn(6, 4)
        with Reads() as reads:
            tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=estimator)
        counts[depth] = reads.count
    assert counts[12] == counts[2]
