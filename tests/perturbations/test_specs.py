"""Specs are plain: the same before and after use, compared by hyper-parameters, and nothing keeps the model."""

from __future__ import annotations

import gc
import pickle
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import bound, randn, settled
from torch import Tensor, nn

import tpv
from tpv.testing import dense_tpv

TRAIN, TEST = randn(8, 4), randn(6, 4, seed=1)


def network() -> nn.Module:
    torch.manual_seed(1)
    return settled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def other_weights() -> dict[str, Tensor]:
    return {name: p.detach() + 0.1 for name, p in network().named_parameters()}


@dataclass(frozen=True)
class Correlated(tpv.Perturbation):
    """A user's: all weights of a tensor move together."""

    scale: float = 0.1

    def sample(self, weights: tpv.Weights, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: self.scale * torch.randn(1, generator=generator) * w for name, w in weights.items()}


@dataclass(frozen=True)
class Relative(tpv.DiagonalPerturbation):
    """A user's: independent noise in proportion to each weight."""

    scale: float = 0.1

    def variance(self, weights: tpv.Weights) -> dict[str, Tensor]:
        return {name: (self.scale * w).square() for name, w in weights.items()}


def descent() -> tpv.LabelNoise:
    return tpv.LabelNoise(1e-3, TRAIN, tpv.GradientDescent(lr=0.1, steps=3))


SPECS: list[Any] = [
    lambda: tpv.Isotropic(0.1, params="0.*"),
    lambda: tpv.SGDNoise(lr=0.1, batch_size=8),
    lambda: tpv.Quantization(bits=4),
    lambda: tpv.Quantization(bits=4, error="actual"),
    lambda: tpv.Displacement(other_weights()),
    lambda: tpv.Masking({"0.weight": torch.ones(5, 4).triu()}),
    lambda: tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)),
    lambda: tpv.LabelNoise(0.1, [TRAIN[:3], TRAIN[3:]], tpv.GradientDescent(lr=None, steps=4)),
    lambda: tpv.LabelNoise(0.1, fit=tpv.Ridge(0.1), kernel=tpv.NTK(network(), TRAIN)),
    lambda: tpv.Retraining(descent(), runs=2),
    lambda: tpv.Retraining(descent(), runs=2, targets=randn(8, 3, seed=4)),
    lambda: tpv.Isotropic(0.1) + tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)),
    Correlated,
    Relative,
]
NAMES = [repr(make()) + (" with a kernel" if getattr(make(), "kernel", None) else "") for make in SPECS]


def used(spec: tpv.PerturbationSpec, model: nn.Module) -> None:
    """Every verb, and every estimator that can treat it."""
    tpv.estimate(model, TEST, spec)
    tpv.estimate(model, TEST, spec, estimator=tpv.LinearizedMonteCarlo(2))
    tpv.linearity(model, TEST, spec, draws=2)
    if not isinstance(spec, tpv.perturbations.Sum):
        tpv.stability(model, TRAIN, TEST, spec)


@pytest.mark.parametrize("make", SPECS, ids=NAMES)
@pytest.mark.filterwarnings("ignore:without noise")
def test_a_spec_pickles_to_the_same_bytes_before_and_after_use(make: Any) -> None:
    spec, model = make(), network()
    before = pickle.dumps(spec)
    used(spec, model)
    assert pickle.dumps(spec) == before
    copy = pickle.loads(before)
    assert repr(copy) == repr(spec)
    assert tpv.estimate(model, TEST, copy).value == tpv.estimate(model, TEST, spec).value


@pytest.mark.parametrize("make", SPECS, ids=NAMES)
@pytest.mark.filterwarnings("ignore:without noise")
def test_nothing_keeps_the_model_after_a_call(make: Any) -> None:
    spec, model = make(), network()
    used(spec, model)
    parameter, module = weakref.ref(model[0].weight), weakref.ref(model)
    del model
    gc.collect()
    assert module() is None
    assert parameter() is None


@pytest.mark.parametrize("make", [m for m, name in zip(SPECS, NAMES, strict=True) if "kernel" not in name])
def test_specs_compare_by_their_hyper_parameters(make: Any) -> None:
    spec = make()
    assert spec == make()
    assert hash(spec) == hash(make())
    assert spec != tpv.Isotropic(0.7)
    assert spec == pickle.loads(pickle.dumps(spec))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)), tpv.LabelNoise(0.1, TRAIN + 1e-9, tpv.Ridge(0.1))),
        (tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)), tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.2))),
        (tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)), tpv.LabelNoise(0.1, TRAIN.float(), tpv.Ridge(0.1))),
        (tpv.Masking({"a": torch.ones(2)}), tpv.Masking({"a": torch.tensor([1.0, 0.0])})),
        (tpv.Masking({"a": torch.ones(2)}), tpv.Masking({"b": torch.ones(2)})),
        (tpv.Displacement({"a": torch.ones(2)}), tpv.Masking({"a": torch.ones(2)})),
        (tpv.Isotropic(0.1) + tpv.Isotropic(0.2), tpv.Isotropic(0.1) + tpv.Isotropic(0.3)),
    ],
)  # fmt: skip
def test_specs_that_differ_are_not_equal(one: tpv.PerturbationSpec, other: tpv.PerturbationSpec) -> None:
    assert one != other


def test_a_small_spec_stays_small() -> None:
    """A pickle holds the training inputs and the numbers, not what binding made of them."""
    noise, model = tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)), nn.Linear(4, 2000).double()
    tpv.estimate(model, TEST, noise, estimator=tpv.LinearizedMonteCarlo(1))
    assert len(pickle.dumps(noise)) < TRAIN.nbytes + 2000


def test_bound_perturbations_are_made_anew() -> None:
    spec, model = tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1)), network()
    assert bound(spec, model).factor is not bound(spec, model).factor
    kernel = tpv.NTK(model, TRAIN)
    shared = tpv.LabelNoise(0.1, fit=tpv.Ridge(0.1), kernel=kernel)
    assert bound(shared, model).factor.ntk is kernel


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1), kernel=tpv.NTK(network(), TRAIN)), "leave data out"),
        (lambda: tpv.LabelNoise(0.1, fit=tpv.Ridge(0.1), kernel=TRAIN), r"is a Tensor: give tpv\.NTK"),
        (
            lambda: tpv.LabelNoise(0.1, fit=tpv.Ridge(0.1), kernel=tpv.NTK(network(), TRAIN, center=False)),
            r"LabelNoise\(center=True\) has a kernel of center=False",
        ),
        (lambda: tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1), center="no"), "center must be True or False"),
        (lambda: tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1), relative="no"), "relative must be True or False"),
        (lambda: tpv.Quantization(symmetric="no"), "symmetric must be True or False"),
        (lambda: tpv.Retraining(descent(), adaptive="no"), "adaptive must be True or False"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(make: Any, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (lambda: tpv.Quantization(bits=np.int64(4)), tpv.Quantization(bits=4)),
        (lambda: tpv.SGDNoise(np.float32(0.5), np.int32(8), np.float64(0.5)), tpv.SGDNoise(0.5, 8, 0.5)),
        (lambda: tpv.Isotropic(np.float64(0.1)), tpv.Isotropic(0.1)),
        (lambda: tpv.Hutchinson(np.int64(2)), tpv.Hutchinson(2)),
        (lambda: tpv.HutchPlusPlus(np.int8(2), np.int8(3)), tpv.HutchPlusPlus(2, 3)),
        (lambda: tpv.MonteCarlo(np.uint8(2)), tpv.MonteCarlo(2)),
        (lambda: tpv.GradientDescent(np.float64(0.1), np.int64(3)), tpv.GradientDescent(0.1, 3)),
        (lambda: tpv.Retraining(descent(), runs=np.int64(2)), tpv.Retraining(descent(), runs=2)),
    ],
)  # fmt: skip
def test_a_numpy_scalar_is_a_plain_number(made: Any, plain: Any) -> None:
    assert made() == plain
    assert repr(made()) == repr(plain)
    assert pickle.dumps(made()) == pickle.dumps(plain)


def test_seeds_draws_and_sizes_may_be_numpy_scalars() -> None:
    model, noise = network(), tpv.Isotropic(0.1)
    plain = tpv.estimate(model, TEST, noise, estimator=tpv.MonteCarlo(2), generator=3, chunk_size=2)
    draws, seed, size = np.int64(2), np.int64(3), np.int64(2)
    found = tpv.estimate(model, TEST, noise, estimator=tpv.MonteCarlo(draws), generator=seed, chunk_size=size)
    assert found.value == plain.value
    assert found.to_dict()["metadata"]["seed"] == 3
    assert type(found.metadata["seed"]) is int
    assert tpv.stability(model, TRAIN, TEST, noise, generator=seed).ratio > 0
    assert tpv.linearity(model, TEST, noise, draws=np.int64(2), generator=seed).value >= 0
    assert found.to_json()


def test_a_users_perturbation_in_every_verb() -> None:
    model, spec = network(), Correlated()
    result = tpv.estimate(model, TEST, spec)
    assert result.metadata["estimator"] == "LinearizedMonteCarlo(draws=16)"
    assert tpv.linearity(model, TEST, spec).value > 0
    assert tpv.stability(model, TRAIN, TEST, spec).ratio > 0
    exact = tpv.estimate(model, TEST, Relative())
    assert exact.metadata["estimator"] == "Exact()"
    assert exact.value == pytest.approx(dense_tpv(model, TEST, Relative())["total"], rel=1e-10)
    assert set(exact.layers) == {"0", "2"}
