"""Callbacks of the wrong kind, attributes that are hard to copy, and odd defaults: exact, or one sentence."""

from __future__ import annotations

import array
import itertools
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor, nn

import tpv

NOISE = tpv.Isotropic(0.1)


def layer(kind: type[nn.Module] | None = None) -> Any:
    torch.manual_seed(0)
    return (kind() if kind else nn.Linear(3, 2)).double()


class Returned(tpv.Perturbation):
    def __init__(self, draw: Callable[[Any], Any], variances: Callable[[Any], Any] = lambda w: None) -> None:
        self.draw, self.variances = draw, variances

    def __repr__(self) -> str:
        return "Mine()"

    def sample(self, weights: Any, generator: torch.Generator) -> Any:
        return self.draw(weights)

    def variance(self, weights: Any) -> Any:
        return self.variances(weights)


def each(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    return lambda weights: {name: change(w) for name, w in weights.items()}


WRONG = [
    (Returned(each(lambda w: 1j * w)), "sample gave 'weight' the dtype torch.complex128"),
    (Returned(each(torch.Tensor.long)), "sample gave 'weight' the dtype torch.int64"),
    (Returned(lambda w: None), "sample must give a mapping from parameter names to tensors, got a NoneType"),
    (Returned(lambda w: [1]), "sample must give a mapping from parameter names to tensors, got a list"),
    (Returned(each(lambda w: 0.1)), "sample must give .* and gave 'weight' a float 0.1"),
    (Returned(each(lambda w: w.numpy())), "sample must give .* and gave 'weight' a ndarray"),
    (Returned(each(lambda w: w), each(lambda w: 0.1)), "variance must give .* and gave 'weight' a float 0.1"),
    (
        Returned(each(lambda w: w), each(lambda w: 1j * w)),
        "variance gave 'weight' the dtype torch.complex128",
    ),
    (tpv.Isotropic(0.1, params=lambda n, w: w > 0), "must give True or False, got a Tensor"),
    (tpv.Isotropic(0.1, params=lambda n, w: (n == p for p in "ab")), "True or False, got a generator"),
]


@pytest.mark.parametrize(("perturbation", "sentence"), WRONG)
def test_callbacks_of_the_wrong_kind(perturbation: Any, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(layer(), randn(4, 3), perturbation)


def test_layers_of_the_wrong_kind() -> None:
    with pytest.raises(tpv.TPVError, match="give glob patterns, got an int 2"):
        tpv.estimate(layer(), randn(4, 3), NOISE, layers={"a": 2})  # type: ignore[dict-item]


class Seeded(random.Random):
    def __new__(cls, seed: int) -> Seeded:
        return super().__new__(cls)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seeds = [seed]


class Named(weakref.WeakValueDictionary[str, nn.Module]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Noted(weakref.WeakSet[nn.Module]):
    def __init__(self, name: str, *members: nn.Module) -> None:
        super().__init__(members)
        self.name = name


class Stateful(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.count, self.array = itertools.count(3, 2), array.array("d", [0.0])
        self.random, self.system = Seeded(1), random.SystemRandom()
        self.named, self.noted = Named("n"), Noted("s", self)
        self.named["self"] = self

    def forward(self, x: Tensor) -> Tensor:
        next(self.count)
        self.array[0] += 1
        self.random.random()
        self.random.seeds.append(2)
        assert self.named["self"] is self
        assert self in self.noted
        assert (self.named.name, self.noted.name) == ("n", "s")
        return super().forward(x)


def test_attributes_that_are_hard_to_copy_stay_as_they_were() -> None:
    model, x = layer(Stateful), randn(4, 3)
    expected = tpv.estimate(layer(), x, NOISE).value
    assert tpv.estimate(model, x, NOISE).value == expected
    assert (next(model.count), model.array[0], model.random.seeds) == (3, 0, [1])
    assert model.random.random() == random.Random(1).random()


class Writing(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.table = np.zeros(2**18)

    def forward(self, x: Tensor) -> Tensor:
        self.table[0] += 1
        return super().forward(x)


def test_a_write_into_a_large_array_is_refused_in_words() -> None:
    model = layer(Writing)
    with pytest.raises(tpv.TPVError, match="forward pass writes into a NumPy array of more than 1 MiB"):
        tpv.estimate(model, randn(4, 3), NOISE)
    assert model.table[0] == 0


class View(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Parameter(torch.randn(6, 3))
        self.part = self.big[:2]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.part.t()


@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(2), tpv.MonteCarlo(2)])
def test_a_view_of_a_parameter_is_refused_when_it_is_used(estimator: Any) -> None:
    torch.manual_seed(0)
    model = View()
    with pytest.raises(tpv.TPVError, match="use 'big' through something that a perturbation would not reach"):
        tpv.estimate(model, torch.randn(4, 3), NOISE, estimator=estimator)


class Recomputed(View):
    def forward(self, x: Tensor) -> Tensor:
        self.part = self.big[:2]
        return super().forward(x)


def test_a_view_that_each_pass_computes_is_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    value = tpv.estimate(Recomputed(), x, NOISE, estimator=tpv.Exact()).value
    assert value == pytest.approx(0.1**2 * 2 * float(x.square().sum(1).mean()), rel=1e-5)


def test_a_default_device_without_values() -> None:
    model, x = layer(), randn(4, 3)
    expected = [tpv.estimate(model, x, NOISE, estimator=e).value for e in (tpv.Exact(), tpv.MonteCarlo(2))]
    with torch.device("meta"):
        values = [tpv.estimate(model, x, NOISE, estimator=e).value for e in (tpv.Exact(), tpv.MonteCarlo(2))]
        assert torch.zeros(1).is_meta
    assert values == expected
