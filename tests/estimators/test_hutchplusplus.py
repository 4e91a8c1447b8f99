"""Hutch++ and kernels that are not written out."""

from __future__ import annotations

import math

import pytest
import torch
from cases import bound, randn, seeded, settled
from kernels import (
    FITS,
    STD,
    TEST,
    TRAIN,
    dense,
    flat,
    label_noise,
    mlp,
    output_changes,
    z_score,
)
from torch import nn

import tpv


@pytest.fixture
def matrix_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("fit", [FITS[1], FITS[4], FITS[6]], ids=repr)
def test_hutch_plus_plus_agrees(rank: int, fit: tpv.ntk.Fit) -> None:
    model, noise = mlp(), label_noise(fit)
    exact = tpv.estimate(model, TEST, noise)
    found = tpv.estimate(model, TEST, noise, estimator=tpv.HutchPlusPlus(rank, draws=100), generator=17)
    if rank < 20:
        assert abs(z_score(found, exact.value)) < 4
    else:  # centered: 20 dimensions of noise
        assert found.value == pytest.approx(exact.value, rel=1e-10)
    assert found.mc_stderr < 1.3 * exact.draw_std / 10
    assert math.isnan(found.draw_std)
    assert found.spectrum is None


@pytest.mark.usefixtures("matrix_free")
@pytest.mark.parametrize("fit", [FITS[1], FITS[4], FITS[5], FITS[6]], ids=repr)
def test_hutch_plus_plus_by_products_alone(fit: tpv.ntk.Fit) -> None:
    model, noise = mlp(), label_noise(fit, data=list(TRAIN.split(4)))
    assert not bound(noise, model).factor.ntk.dense
    found = tpv.estimate(model, TEST, noise)
    assert found.metadata["estimator"] == "HutchPlusPlus(rank=64, draws=8)"
    assert found.metadata["kernel_bytes"] == 0
    j, j_test = (dense(model, x, center=True) for x in (TRAIN, TEST))
    expected = STD**2 / 8 * output_changes(j_test, j, fit).square().sum().item()
    assert found.value == pytest.approx(expected, rel=1e-6)
    few = tpv.estimate(model, TEST, noise, estimator=tpv.HutchPlusPlus(4, draws=100))
    assert abs(few.value - expected) < 4 * few.mc_stderr + 1e-4 * expected


@pytest.mark.parametrize("fit", [FITS[1], FITS[2], FITS[4], FITS[5], FITS[6]], ids=repr)
def test_the_same_seed_gives_the_same_draw_with_and_without_the_matrix(
    fit: tpv.ntk.Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = settled(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))), randn(40, 8)
    j = dense(model, x, center=True)
    written = label_noise(fit, x)
    dense_draws = [flat(bound(written, model).sample(seeded(s))) for s in range(3)]
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)
    free = label_noise(fit, x)
    for seed, expected in enumerate(dense_draws):
        found = flat(bound(free, model).sample(seeded(seed)))
        assert (j @ (found - expected)).norm() < 1e-2 * (j @ expected).norm()
    met = bound(free, model).factor
    assert met.ntk._matrix is None
    assert met._krylov.basis.shape[1] < 120


def test_displacements_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpv.estimators.kernel.available_bytes", lambda device: 1000)
    with pytest.raises(
        tpv.TPVError,
        match=r"HutchPlusPlus\(rank=64, draws=8\) keeps 72 displacements of the weights, .* GiB may be used: give a lower rank",
    ):
        tpv.estimate(mlp(), TEST, label_noise(), estimator=tpv.HutchPlusPlus())
