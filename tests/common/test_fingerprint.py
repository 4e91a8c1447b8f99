"""What counts in a fingerprint, and what does not."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tpv
from tpv.common.fingerprint import RunningFingerprint, fingerprint


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def apply(self, x: float) -> float:
        return x * self.by


@dataclass(frozen=True)
class Spec:
    bits: int
    weights: Any = None


def one() -> None: ...
def two() -> None: ...


DIFFERENT = [
    (1, 2),
    (1, 1.0),
    (1, True),
    (1, "1"),
    ("a", b"a"),
    (["ab", "c"], ["a", "bc"]),
    ([1, [2, 3]], [[1, 2], 3]),
    ({"a": 1}, {"a": 2}),
    ({1, 2}, {1, 3}),
    (Spec(4), Spec(3)),
    (Spec(4, torch.ones(2)), Spec(4, torch.zeros(2))),
    (Scale(1.0), Scale(2.0)),
    (Scale(1.0).apply, Scale(2.0).apply),
    (functools.partial(pow, 2), functools.partial(pow, 3)),
    (one, two),
    (Spec, Scale),
    (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    (torch.ones(2, 3), torch.ones(3, 2)),
    (torch.tensor([1 + 1j]).conj(), torch.tensor([1 + 1j])),
    (torch.eye(2).to_sparse(), torch.eye(2)[[1, 0]].to_sparse()),
    (np.ones(2), np.zeros(2)),
    (np.array([1], object), np.array([2], object)),
    (np.float32(1), np.float32(2)),
    (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    (torch.float32, torch.float64),
    (nn.Linear(2, 2), nn.Linear(2, 2)),
    (tpv.Quantization(bits=4), tpv.Quantization(bits=3)),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_what_differs_has_another_fingerprint(a: object, b: object) -> None:
    assert fingerprint(a) == fingerprint(a)
    assert fingerprint(a) != fingerprint(b)


def test_order_of_sets_addresses_and_memory_do_not_count() -> None:
    assert fingerprint({"a", "b", "c"}) == fingerprint({"c", "b", "a"})
    assert fingerprint(Scale(1.0)) == fingerprint(Scale(1.0))
    assert fingerprint(torch.arange(6).reshape(2, 3).T) == fingerprint(
        torch.arange(6).reshape(2, 3).T.contiguous()
    )


def test_what_holds_itself_ends() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    assert fingerprint(loop) != fingerprint([1])


@pytest.mark.slow
def test_it_is_the_same_in_another_process() -> None:
    text = "import tpv, torch\nfrom tpv.common.fingerprint import fingerprint\n"
    text += "print(fingerprint({'a', 'b'}, tpv.Quantization(bits=4), torch.ones(2), tpv.estimate))"
    seen = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout for _ in range(2)
    ]
    assert (
        seen[0]
        == seen[1]
        == fingerprint({"a", "b"}, tpv.Quantization(bits=4), torch.ones(2), tpv.estimate) + "\n"
    )


def test_every_batch_counts_and_is_read_once() -> None:
    def batches(last: float) -> Iterator[Any]:
        yield torch.ones(3), {"labels": torch.zeros(3)}
        yield torch.full((3,), last), {"labels": torch.zeros(3)}

    seen = {}
    for last in (1.0, 2.0, 1.0 + 2**-20):
        running = RunningFingerprint()
        assert len(list(running.reading(batches(last)))) == 2
        seen[last] = running.hexdigest()
    assert len(set(seen.values())) == 3
    assert seen[2.0] == fingerprint(*batches(2.0))
