"""Batches whose rows belong to examples in unusual ways: cut rightly, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import tpv

NOISE = tpv.Isotropic(1.0)


class Mixing(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rows, self.mix = nn.Linear(3, 2), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.rows(x))


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda h: h.cumsum(0),
    "first": lambda h: h - h[:1],
    "last": lambda h: h - h[-1:],
    "differences": lambda h: torch.cat([h[:1], h[1:] - h[:-1]]),
    "sorted": lambda h: h.sort(0)[0],
    "reversed": lambda h: h.flip(0),
    "slight": lambda h: h + 1e-5 * h.mean(0),
    "capacity of 2": lambda h: h * (torch.arange(len(h)) < 2).to(h)[:, None],
    "capacity of 5": lambda h: h * (torch.arange(len(h)) < 5).to(h)[:, None],
    "capacity of 20": lambda h: h * (torch.arange(len(h)) < 20).to(h)[:, None],
}


@pytest.mark.parametrize("kind", MIXES)
def test_examples_that_depend_on_other_rows_are_refused(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(tpv.TPVError, match="change with the other examples"):
        tpv.estimate(Mixing(MIXES[kind]), torch.randn(30, 3), NOISE)


@pytest.mark.parametrize("kind", [kind for kind in MIXES if kind != "capacity of 20"])
def test_so_are_training_sets(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(tpv.TPVError, match="change with the other examples"):
        tpv.NTK(Mixing(MIXES[kind]), torch.randn(30, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_forgotten_batch_first_is_named(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    with pytest.raises(tpv.TPVError, match="cells has batch_first=False"):
        tpv.estimate(Recurrent(kind).eval(), torch.randn(8, 5, 3), NOISE)


WORDS = ["x" * (i + 1) for i in range(10)]
ROWS: dict[str, Any] = {
    "list": WORDS,
    "tuple": tuple(WORDS),
    "lists": [list(word) for word in WORDS],
    "dicts": [dict.fromkeys(range(len(word))) for word in WORDS],
    "ragged tensors": [torch.ones(len(word)) for word in WORDS],
    "objects": np.array(WORDS, dtype=object),
    "numbers": np.ones((10, 3)),
}


@pytest.mark.parametrize("chunk_size", [1, 3, 10])
@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_are_not_tensors_stay_with_their_examples(kind: str, chunk_size: int) -> None:
    torch.manual_seed(0)
    x, rows = randn(10, 3), ROWS[kind]
    lengths = torch.tensor([len(row) for row in rows]).double()
    right = (2 * (x.square().sum(1) + 1) * lengths**2).mean().item()

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([model(row) * len(word) for row, word in zip(*batch, strict=True)])

    result = tpv.estimate(
        nn.Linear(3, 2).double(), [(x, rows)], NOISE, forward=forward, chunk_size=chunk_size
    )
    assert result.value == pytest.approx(right, rel=1e-10)


@pytest.mark.parametrize(
    "rows", [set("abc"), frozenset("abc"), iter("abc")], ids=lambda rows: type(rows).__name__
)
def test_what_cannot_be_cut_is_refused(rows: object) -> None:
    with pytest.raises(tpv.TPVError, match="cannot be cut"):
        tpv.estimate(nn.Linear(3, 2), [(torch.ones(3, 3), rows)], NOISE, forward=lambda m, b: m(b[0]))


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: (p, torch.zeros(3)), lambda p: {"p": p}])
def test_packed_sequences_are_refused(wrap: Callable[[Any], Any]) -> None:
    packed = pack_sequence([torch.ones(n, 3) for n in (5, 4, 2)])
    with pytest.raises(tpv.TPVError, match="PackedSequence"):
        tpv.estimate(nn.GRU(3, 4), [wrap(packed)], NOISE)


class Loader:
    """Batches that are made anew at every reading."""

    def __init__(self, *readings: list[Any]) -> None:
        self.readings, self.count = readings, 0

    def __iter__(self) -> Iterator[Any]:
        self.count += 1
        return iter(self.readings[min(self.count, len(self.readings)) - 1])


@pytest.mark.parametrize("as_data", [list, Loader])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_empty_batches_are_skipped(as_data: Callable[[list[Tensor]], Any], place: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), randn(9, 3)
    parts = [x[:5], x[5:]]
    parts.insert(place, x[:0])
    right = tpv.estimate(model, x, NOISE, estimator=tpv.Exact()).value
    assert tpv.estimate(model, as_data(parts), NOISE, estimator=tpv.Exact()).value == pytest.approx(right)
    noise = [tpv.LabelNoise(0.1, data, tpv.Ridge(0.1)) for data in (x, as_data(parts))]
    right, here = (tpv.estimate(model, x, law).value for law in noise)
    assert here == pytest.approx(right)
    assert tpv.linearity(model, as_data(parts), tpv.Isotropic(0.01)).n_examples == 9


@pytest.mark.parametrize("later", [[4, 3], [4], [4, 4, 1], [4, 4, 4], [5, 3]])
def test_training_data_of_another_length_at_a_later_reading_are_refused(later: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x = randn(12, 6)
    data = Loader(list(x[:8].split(4)), list(x[: sum(later)].split(later)))
    with pytest.raises(tpv.TPVError, match="8 examples at the first reading"):
        tpv.estimate(model, x, tpv.LabelNoise(0.1, data, tpv.Ridge(0.01)))


def test_training_data_with_other_values_are_refused() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double(), randn(8, 6)
    changed = x.clone()
    changed[-1] += 1
    with pytest.raises(tpv.TPVError, match="another order, or changed"):
        tpv.NTK(model, Loader([x], [changed])).matrix.sum()


@pytest.mark.parametrize("n", [5, 9, 12, 300])
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.Hutchinson(1), tpv.MonteCarlo(2)], ids=repr)
def test_not_a_number_in_the_last_row_is_reported(n: int, estimator: tpv.Estimator) -> None:
    x = torch.ones(n, 3)
    x[-1] = float("nan")
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(tpv.TPVError, match="clean the data"):
        tpv.estimate(model, x, NOISE, estimator=estimator)


def test_a_forward_may_take_its_batch_apart() -> None:
    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        del batch["labels"]
        batch["x"].clamp_(-0.5, 0.5)
        return model(batch.pop("x"))

    torch.manual_seed(0)
    batch = {"x": randn(6, 3), "labels": torch.zeros(6)}
    before = copy.deepcopy(batch)
    value = tpv.estimate(nn.Linear(3, 2).double(), [batch], NOISE, forward=forward).value
    right = 2 * (before["x"].clamp(-0.5, 0.5).square().sum(1) + 1).mean().item()
    assert value == pytest.approx(right)
    assert batch.keys() == before.keys()
    assert torch.equal(batch["x"], before["x"])
