"""Label noise against dense algebra, explicit optimisation, draws, and the theory of least squares."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import bound, faults_survived, filtered, randn, seeded, settled
from kernels import assert_close, dense, language_model, mean_free, mlp, rows_of, words
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tpv
from tpv import GradientDescent, Interpolation, Ridge
from tpv.model.batches import batch_size
from tpv.model.regrouping import LargeBatches
from tpv.ntk.krylov import Krylov
from tpv.testing import assert_unchanged, dense_jacobian

TRAIN, TEST = randn(10, 4), randn(8, 4, seed=1)
STD = 0.1
FITS = [
    Interpolation(),
    Ridge(0.5),
    Ridge(1e-3),
    GradientDescent(lr=0.3, steps=1),
    GradientDescent(lr=0.3, steps=40),
    GradientDescent(lr=None, steps=10, gamma=0.2),
    GradientDescent(lr=0.2, steps=25, momentum=0.9),
    GradientDescent(lr=0.1, steps=20, momentum=0.5, gamma=0.2),
]


def law(fit: tpv.ntk.Fit = FITS[1], data: object = TRAIN, std: float = STD, **options: Any) -> tpv.LabelNoise:
    return tpv.LabelNoise(std, data, fit, **options)


def value(model: nn.Module, data: object, noise: tpv.Perturbation, **options: Any) -> float:
    return tpv.estimate(model, data, noise, **options).value


def moved(j_test: Tensor, j: Tensor, fit: tpv.ntk.Fit, outputs: int | None = None) -> Tensor:
    """What unit noise moves: K_te φ(K)."""
    return j_test @ j.T @ filtered(j @ j.T, fit, outputs or len(j))


def flat(delta: Any) -> Tensor:
    return torch.cat([d.reshape(-1) for d in delta.values()])


def z_score(found: tpv.TPVResult, expected: float) -> float:
    assert found.mc_stderr > 0
    return (found.value - expected) / found.mc_stderr


# ---------------------------------------------------------------------------------------------------------------------
# Fits
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fit",
    [
        GradientDescent(lr=0.1, steps=1),
        GradientDescent(lr=0.1, steps=30),
        GradientDescent(lr=0.1, steps=30, gamma=0.7),
        GradientDescent(lr=0.1, steps=30, momentum=0.9),
        GradientDescent(lr=0.05, steps=17, momentum=0.5, gamma=0.3),
    ],
    ids=repr,
)
def test_gradient_descent_is_what_sgd_does(fit: GradientDescent) -> None:
    j, noise = randn(12, 7), randn(12, seed=1)
    delta = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([delta], lr=fit.lr, momentum=fit.momentum)
    for _ in range(fit.steps):
        optimizer.zero_grad()
        (nn.functional.mse_loss(j @ delta, noise) + fit.gamma / 2 * delta.square().sum()).backward()
        optimizer.step()
    assert_close(j.T @ (filtered(j @ j.T, fit, 12) @ noise), delta.detach())


def test_the_default_learning_rate_is_one_over_the_largest_curvature() -> None:
    k = torch.tensor([6.0, 3.0, 0.0]).double()
    fit = GradientDescent(lr=None, steps=3, gamma=0.5)
    assert fit.resolved(torch.float64, 4, 6.0) == GradientDescent(lr=1 / 3.5, steps=3, gamma=0.5)
    assert_close(fit.filter(k, 4, 6.0), GradientDescent(lr=1 / 3.5, steps=3, gamma=0.5).filter(k, 4, 6.0))
    assert fit.filter(k, 4, 6.0)[0].item() == pytest.approx(1 / (6 + 4 * 0.5 / 2))  # at rest after one step
    assert GradientDescent(lr=0.1, steps=3).resolved(torch.float64, 4, 6.0).lr == 0.1


def test_ridge_is_the_minimum() -> None:
    j, noise, gamma = randn(12, 7), randn(12, seed=1), 0.3
    expected = torch.linalg.solve(2 / 12 * j.T @ j + gamma * torch.eye(7).double(), 2 / 12 * j.T @ noise)
    assert_close(j.T @ (filtered(j @ j.T, Ridge(gamma), 12) @ noise), expected)
    assert_close(
        filtered(j @ j.T, GradientDescent(lr=0.1, steps=20000, gamma=gamma), 12) @ (j @ expected),
        filtered(j @ j.T, Ridge(gamma), 12) @ (j @ expected),
    )


@pytest.mark.parametrize("rank", [3, 7, 12])
def test_interpolation_is_least_squares_of_least_norm(rank: int) -> None:
    j, noise = randn(12, rank) @ randn(rank, 20, seed=2), randn(12, seed=1)
    expected = torch.linalg.lstsq(j, noise.unsqueeze(1), driver="gelsd", rcond=1e-7).solution[:, 0]
    assert_close(j.T @ (filtered(j @ j.T, Interpolation(), 12) @ noise), expected, 1e-8)


def test_interpolation_drops_what_is_below_its_threshold() -> None:
    k = torch.tensor([10.0, 1.0, 0.11, 0.09, 0.0]).double()
    assert_close(
        Interpolation(0.01).filter(k, 5, 10.0),
        torch.tensor([0.1, 1.0, 1 / k[2].item(), 0.0, 0.0]).double(),
        1e-7,
    )
    assert [Interpolation().resolved(d, 5, 10.0).rcond for d in (torch.float32, torch.float64)] == [
        1e-5,
        1e-10,
    ]
    assert Interpolation(0.01).resolved(torch.float32, 5, 10.0).rcond == 0.01


# ---------------------------------------------------------------------------------------------------------------------
# The closed form
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS, ids=repr)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_closed_form(fit: tpv.ntk.Fit, center: bool, outputs: int) -> None:
    model = mlp(outputs)
    centred = center and outputs > 1
    j, j_test = (dense(model, x, centred) for x in (TRAIN, TEST))
    noise = law(fit, center=center)
    with assert_unchanged(model):
        result = tpv.estimate(model, TEST, noise)
    shifts = STD * moved(j_test, j, fit)
    tolerance = 1e-7 if isinstance(fit, Interpolation) else 1e-10
    assert result.value == pytest.approx(shifts.square().sum().item() / 8, rel=tolerance)
    by_example = shifts.square().reshape(8, -1).sum(1)
    assert result.stderr == pytest.approx((by_example.var() / 8).sqrt().item(), rel=tolerance)
    assert result.mc_stderr == 0
    s = shifts.T @ shifts / 8
    assert result.draw_std == pytest.approx(math.sqrt(2 * (s @ s).trace().item()), rel=tolerance)
    k = torch.linalg.eigvalsh(j @ j.T).clamp(min=0)
    followed = k * fit.filter(k, len(j), k.max().item())
    in_sample = tpv.estimate(model, TRAIN, noise)
    assert in_sample.value == pytest.approx(STD**2 / 10 * followed.square().sum().item(), rel=tolerance)
    spectrum = result.spectrum
    assert math.fsum(spectrum.value) == pytest.approx(result.value, rel=1e-6)
    assert math.fsum(spectrum.in_sample) == pytest.approx(in_sample.value, rel=1e-6)
    assert spectrum.in_sample == in_sample.spectrum.in_sample
    assert spectrum.degrees_of_freedom == pytest.approx(followed.sum().item(), rel=1e-6)


@pytest.mark.parametrize("output", ["logits", "centered", "probabilities", "kl", lambda z: z[:, 1:]])
@pytest.mark.parametrize("center", [True, False])
def test_every_read_out(output: Any, center: bool) -> None:
    model = mlp()
    j_test = rows_of(dense_jacobian(model, TEST, output=output))
    train_output = output if callable(output) else "logits"
    j = rows_of(dense_jacobian(model, TRAIN, output=train_output))
    if center:
        j = mean_free(j.reshape(10, -1, 51).transpose(1, 2)).transpose(1, 2).reshape(len(j), 51)
    found = value(model, TEST, law(center=center), output=output)
    assert found == pytest.approx(STD**2 / 8 * moved(j_test, j, FITS[1]).square().sum().item(), rel=1e-10)


def test_the_read_out_is_what_the_loss_sees_unless_asked_for() -> None:
    model = mlp()
    for center, name in ((True, "centered"), (False, "logits")):
        assert value(model, TEST, law(center=center)) == value(model, TEST, law(center=center), output=name)
    assert value(model, TEST, law(), output="logits") > 1.0001 * value(model, TEST, law())


def test_relative_noise_is_in_units_of_the_outputs() -> None:
    model = mlp()
    magnitude = model(TRAIN).detach().abs().mean().item()
    result = tpv.estimate(model, TEST, law(relative=True))
    assert result.value == pytest.approx(magnitude**2 * value(model, TEST, law()), rel=1e-12)
    assert result.metadata["noise_std"] == pytest.approx(STD * magnitude, rel=1e-12)


def test_params_choose_what_is_trained() -> None:
    model = mlp()
    j, j_test = (
        rows_of({n: g for n, g in dense_jacobian(model, x).items() if n.startswith("2.")})
        for x in (TRAIN, TEST)
    )
    noise = law(Ridge(0.2), params="2.*", center=False)
    assert value(model, TEST, noise) == pytest.approx(
        STD**2 / 8 * moved(j_test, j, Ridge(0.2)).square().sum().item(), rel=1e-10
    )
    delta = bound(noise, model).sample(seeded())
    assert set(delta) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_tokens_with_padding_in_batches_of_several_lengths(tied: bool, center: bool) -> None:
    """Neither padded positions nor the padding row of the embedding take part; whichever length comes first."""
    model = language_model(tied)
    train = [words([[1, 2, 0], [3, 4, 5]]), words([[5, 1], [2, 0]])]
    test = [words([[6, 1, 1], [2, 0, 0]]), words([[4, 4], [3, 0]]), words([[1], [2]])]

    def rows(batches: list[dict[str, Tensor]]) -> Tensor:
        found = []
        for batch in batches:
            jacobian = dense_jacobian(model, batch, output="centered" if center else "logits")
            jacobian["embedding.weight"][:, :, 0] = 0
            found.append(rows_of(jacobian))
        return torch.cat(found)

    shifts = STD * moved(rows(test), rows(train), FITS[1], outputs=8 * 7)
    expected = shifts.square().sum().item() / 6
    noise = law(data=train, center=center)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        result = tpv.estimate(model, [test[i] for i in order], noise)
        assert result.value == pytest.approx(expected, rel=1e-10)
        assert result.metadata["train_outputs"] == 56
    drawn = tpv.estimate(model, test, noise, estimator=tpv.LinearizedMonteCarlo(512))
    assert abs(z_score(drawn, expected)) < 4
    assert all((bound(noise, model).sample(seeded(s))["embedding.weight"][0] == 0).all() for s in range(3))


# ---------------------------------------------------------------------------------------------------------------------
# Least squares, where everything is known
# ---------------------------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False).double()


@pytest.mark.parametrize(("outputs", "center", "factor"), [(1, True, 1), (3, False, 3), (3, True, 2)])
def test_least_squares_with_more_examples_than_weights(outputs: int, center: bool, factor: int) -> None:
    model, x, t = linear(4, outputs), randn(30, 4), randn(50, 4, seed=1)
    noise = law(Interpolation(), x, center=center)
    assert value(model, x, noise) == pytest.approx(STD**2 * factor * 4 / 30, rel=1e-10)
    expected = STD**2 * factor * (torch.linalg.inv(x.T @ x) @ t.T @ t).trace().item() / 50
    assert value(model, t, noise) == pytest.approx(expected, rel=1e-10)
    spectrum = tpv.estimate(model, t, noise).spectrum
    assert spectrum.degrees_of_freedom == pytest.approx(factor * 4, rel=1e-6)
    assert sum(v > 0 for v in spectrum.in_sample) == factor * 4
    assert [a for a in spectrum.alpha if math.isfinite(a)] == pytest.approx(
        [30 * v / STD**2 for v in spectrum.value[: factor * 4]], rel=1e-6
    )


@pytest.mark.parametrize(("outputs", "center", "factor"), [(1, True, 1), (3, False, 3), (3, True, 2)])
def test_noise_is_interpolated_with_fewer_examples_than_weights(
    outputs: int, center: bool, factor: int
) -> None:
    model, x, t = linear(20, outputs), randn(6, 20), randn(9, 20, seed=1)
    noise = law(Interpolation(), x, center=center)
    assert value(model, x, noise) == pytest.approx(STD**2 * factor, rel=1e-10)
    expected = STD**2 * factor * (t @ torch.linalg.pinv(x)).square().sum().item() / 9
    assert value(model, t, noise) == pytest.approx(expected, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Laws
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(4), tpv.HutchPlusPlus(4, 4)], ids=repr
)
def test_noise_times_a_is_tpv_times_a_squared(estimator: tpv.Estimator) -> None:
    model = mlp()
    a, b = (value(model, TEST, law(std=std), estimator=estimator) for std in (STD, 3 * STD))
    assert b == pytest.approx(9 * a, rel=1e-10)


class Rotated(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rotation", torch.linalg.qr(randn(3, 3))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.rotation


def test_rotating_the_outputs_changes_nothing_unless_they_are_centred() -> None:
    plain, rotated = (value(m, TEST, law(center=False)) for m in (mlp(), Rotated(mlp())))
    assert rotated == pytest.approx(plain, rel=1e-10)
    assert abs(value(Rotated(mlp()), TEST, law()) / value(mlp(), TEST, law()) - 1) > 0.01


@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.HutchPlusPlus(30, 2)], ids=repr)
def test_order_and_size_of_batches_do_not_matter(estimator: tpv.Estimator) -> None:
    model, expected = mlp(), value(mlp(), TEST, law())
    loader = DataLoader(TensorDataset(TRAIN, torch.zeros(10)), batch_size=4)
    for train in (TRAIN.flip(0), list(TRAIN.split(1)), list(TRAIN.split([7, 3])), loader):
        for test in (TEST.flip(0), list(TEST.split(3))):
            assert value(model, test, law(data=train), estimator=estimator) == pytest.approx(
                expected, rel=1e-10
            )
    whole = tpv.estimate(model, TEST, law(), estimator=estimator)
    for chunk_size in (1, 3, 100):
        result = tpv.estimate(model, TEST, law(), chunk_size=chunk_size, estimator=estimator)
        assert result.value == pytest.approx(expected, rel=1e-10)
        assert result.draw_std == pytest.approx(whole.draw_std, rel=1e-10, nan_ok=True)
        if whole.spectrum:
            assert result.spectrum.value == pytest.approx(whole.spectrum.value, rel=1e-5, abs=1e-9)


def test_small_batches_are_read_together() -> None:
    def mapping(x: Tensor) -> dict[str, Tensor]:
        return {"input": x, "labels": torch.zeros(len(x))}

    assert [len(b) for b in LargeBatches(list(randn(3000, 1).split(100)))] == [1000, 1000, 1000]
    assert [
        len(b[0])
        for b in LargeBatches(DataLoader(TensorDataset(randn(1030, 2), torch.zeros(1030)), batch_size=7))
    ] == [1022, 8]
    uneven = [randn(2, 3), randn(2, 4), randn(1, 4), randn(1, 4).float()]
    assert [tuple(b.shape) for b in LargeBatches(uneven)] == [(2, 3), (3, 4), (1, 4)]
    shared = [{"x": randn(2, 3), "graph": randn(5, 5)} for _ in range(3)]
    assert [batch_size(b) for b in LargeBatches(shared)] == [2, 2, 2]
    seen: list[int] = []
    result = tpv.estimate(
        mlp(), [mapping(x) for x in TEST.split(1)], law(), progress=lambda done, total: seen.append(done)
    )
    assert result.value == pytest.approx(value(mlp(), TEST, law()), rel=1e-12)
    assert seen == [8]


def test_layers_are_refused_with_a_reason() -> None:
    result = tpv.estimate(mlp(), TEST, law())
    assert result.layers == {}
    assert "all layers at once" in result.no_layers


# ---------------------------------------------------------------------------------------------------------------------
# Draws
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [FITS[0], FITS[1], FITS[6]], ids=repr)
@pytest.mark.parametrize("center", [True, False])
def test_draws_agree(fit: tpv.ntk.Fit, center: bool) -> None:
    model, noise = mlp(), law(fit, center=center)
    exact = tpv.estimate(model, TEST, noise)
    drawn = tpv.estimate(model, TEST, noise, estimator=tpv.LinearizedMonteCarlo(600))
    assert abs(z_score(drawn, exact.value)) < 4
    draws = torch.tensor(drawn.draws).double()
    squares = (draws - draws.mean()).square()
    assert abs((squares.mean() - exact.draw_std**2) / (squares.std() / 600**0.5)) < 4


def test_displacements_have_the_covariance_of_the_formula() -> None:
    model, noise = mlp(), law()
    j = dense(model, TRAIN, center=True)
    spread = j.T @ filtered(j @ j.T, FITS[1], 30)
    generator, here = seeded(1), bound(noise, model)
    draws = torch.stack([flat(here.sample(generator)) for _ in range(3000)])
    expected = STD**2 * spread @ spread.T
    gap = draws.T @ draws / 3000 - expected
    error = (
        (expected.diagonal().unsqueeze(0) * expected.diagonal().unsqueeze(1) + expected.square()) / 3000
    ).sqrt()
    assert (gap.abs() < 5.5 * error).all()  # 2601 entries


def test_a_draw_is_the_fit_of_its_noise() -> None:
    model, noise = mlp(), law()
    j = dense(model, TRAIN, center=True)
    epsilon = mean_free(torch.randn(10, 3, generator=seeded(4)).double()).reshape(-1)
    here = bound(noise, model)
    assert_close(here.factor.noise(seeded(4)), epsilon, 1e-6)
    expected = j.T @ filtered(j @ j.T, FITS[1], 30) @ (STD * here.factor.noise(seeded(4)))
    assert_close(flat(here.sample(seeded(4))), expected)
    assert_close(flat(here.factor.displacements(here.factor.noise(seeded(4)).unsqueeze(1))), expected)


def test_every_draw_moves_the_generator_on() -> None:
    """Also where the same noise has been fitted before."""
    model, noise = mlp(), law()
    here = bound(noise, model)
    first = [flat(here.sample(g)) for g in [seeded(0)] for _ in range(3)]
    again = [flat(here.sample(g)) for g in [seeded(0)] for _ in range(3)]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(again[0], again[1])


@pytest.mark.parametrize(
    "estimator", [tpv.LinearizedMonteCarlo(3), tpv.MonteCarlo(3), tpv.HutchPlusPlus(3, 3)], ids=repr
)
def test_the_same_seed_gives_the_same_number(estimator: tpv.Estimator) -> None:
    noises = [law()] if isinstance(estimator, tpv.HutchPlusPlus) else [law(), law() + tpv.Isotropic(0.1)]
    for noise in noises:
        first, again, other = (value(mlp(), TEST, noise, estimator=estimator, generator=s) for s in (0, 0, 1))
        assert first == again != other
        model = mlp()
        same_model = [value(model, TEST, noise, estimator=estimator, generator=s) for s in (0, seeded(0), 0)]
        assert same_model == [first] * 3


def test_a_sum_with_other_noise() -> None:
    model, other = mlp(), tpv.Isotropic(0.02)
    expected = value(model, TEST, law(center=False)) + value(model, TEST, other)
    drawn = tpv.estimate(model, TEST, law(center=False) + other, estimator=tpv.LinearizedMonteCarlo(600))
    assert abs(z_score(drawn, expected)) < 4
    assert drawn.metadata["train_examples"] == 10
    assert tpv.estimate(model, TEST, law() + other).metadata["estimator"] == "LinearizedMonteCarlo(draws=16)"
    with pytest.raises(
        tpv.TPVError,
        match=r"LabelNoise\(std=0\.1.*\+ Isotropic\(std=0\.02\) is none of them: use LinearizedMonteCarlo",
    ):
        tpv.estimate(model, TEST, law() + other, estimator=tpv.Exact())


def test_a_linear_network_moves_as_its_linearization_does() -> None:
    model = linear(4, 3)
    assert tpv.linearity(model, TEST, law()).value < 1e-20
    finite = tpv.estimate(model, TEST, law(), estimator=tpv.MonteCarlo(400))
    assert abs(z_score(finite, value(model, TEST, law()))) < 4
    bent = [tpv.linearity(mlp(), TEST, law(std=std)).value for std in (1e-3, 1e-1)]
    assert bent[0] < 1e-4
    assert bent[0] < bent[1]


# ---------------------------------------------------------------------------------------------------------------------
# Hutch++ and kernels that are not written out
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def matrix_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("fit", [FITS[1], FITS[4], FITS[6]], ids=repr)
def test_hutch_plus_plus_agrees(rank: int, fit: tpv.ntk.Fit) -> None:
    model, noise = mlp(), law(fit)
    exact = tpv.estimate(model, TEST, noise)
    found = tpv.estimate(model, TEST, noise, estimator=tpv.HutchPlusPlus(rank, draws=100), generator=17)
    if rank < 20:
        assert abs(z_score(found, exact.value)) < 4
    else:  # centred: 20 dimensions of noise
        assert found.value == pytest.approx(exact.value, rel=1e-10)
    assert found.mc_stderr < 1.3 * exact.draw_std / 10
    assert math.isnan(found.draw_std)
    assert found.spectrum is None


@pytest.mark.usefixtures("matrix_free")
@pytest.mark.parametrize("fit", [FITS[1], FITS[4], FITS[5], FITS[6]], ids=repr)
def test_hutch_plus_plus_by_products_alone(fit: tpv.ntk.Fit) -> None:
    model, noise = mlp(), law(fit, data=list(TRAIN.split(4)))
    assert not bound(noise, model).factor.ntk.dense
    found = tpv.estimate(model, TEST, noise)
    assert found.metadata["estimator"] == "HutchPlusPlus(rank=64, draws=8)"
    assert found.metadata["kernel_bytes"] == 0
    j, j_test = (dense(model, x, center=True) for x in (TRAIN, TEST))
    expected = STD**2 / 8 * moved(j_test, j, fit).square().sum().item()
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
    written = law(fit, x)
    dense_draws = [flat(bound(written, model).sample(seeded(s))) for s in range(3)]
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)
    free = law(fit, x)
    for seed, expected in enumerate(dense_draws):
        found = flat(bound(free, model).sample(seeded(seed)))
        assert (j @ (found - expected)).norm() < 1e-2 * (j @ expected).norm()
    met = bound(free, model).factor
    assert met.ntk._matrix is None
    assert met._krylov.basis.shape[1] < 120


def spectrum_matrix(n: int = 60, decay: float = 1.5) -> Tensor:
    u = torch.linalg.qr(randn(n, n))[0]
    return (u * torch.arange(1, n + 1).double().pow(-decay)) @ u.T


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_a_krylov_fit_is_as_good_as_its_tolerance(tolerance: float) -> None:
    k = spectrum_matrix()
    products: list[int] = []

    def multiply(v: Tensor) -> Tensor:
        products.append(v.shape[1])
        return k @ v

    space, b = Krylov(multiply, 60, torch.device("cpu")), randn(60, 3, seed=2)
    filter_ = lambda e: Ridge(1e-3).filter(e, 60, 1.0)  # noqa: E731
    exact = k @ filtered(k, Ridge(1e-3), 60) @ b
    found = k @ space.apply(filter_, b, tolerance=tolerance)
    assert (found - exact).norm() < 5 * tolerance * exact.norm()
    assert sum(products) == space.basis.shape[1]
    assert_close(space.image, k @ space.basis)
    assert_close(space.basis.T @ space.basis, torch.eye(space.basis.shape[1]).double(), 1e-7)
    before = sum(products)
    again = k @ space.apply(filter_, b, tolerance=tolerance)
    assert (again - exact).norm() < 5 * tolerance * exact.norm()
    assert sum(products) <= before + 32


def test_a_krylov_fit_ends_where_the_span_is_invariant() -> None:
    u = torch.linalg.qr(randn(30, 4))[0]
    k = (u * torch.tensor([4.0, 2.0, 1.0, 0.5]).double()) @ u.T
    space = Krylov(lambda v: k @ v, 30, torch.device("cpu"))
    b = randn(30, 2, seed=3)
    found = space.apply(lambda e: Ridge(0.1).filter(e, 30, 4.0), b, tolerance=1e-10)
    assert_close(k @ found, k @ filtered(k, Ridge(0.1), 30) @ b, 1e-9)
    assert space.basis.shape[1] <= 10
    values, vectors = space.largest(4, b)
    assert_close(values, torch.tensor([4.0, 2.0, 1.0, 0.5]).double(), 1e-9)
    assert_close(k @ vectors, vectors * values, 1e-7)


def test_the_largest_eigenvectors_are_found() -> None:
    k = spectrum_matrix(200, 2.0)
    space = Krylov(lambda v: k @ v, 200, torch.device("cpu"))
    values, vectors = space.largest(8, randn(200, 8, seed=1))
    assert vectors.shape == (200, 8)
    assert space.basis.shape[1] == 16
    assert values[:4].tolist() == pytest.approx([1, 1 / 4, 1 / 9, 1 / 16], rel=3e-2)


def test_a_fit_that_does_not_converge_says_so() -> None:
    space = Krylov(lambda v: spectrum_matrix(60, 0.3) @ v, 60, torch.device("cpu"))
    with pytest.raises(
        tpv.TPVError,
        match=r"has not converged after 1\d products .* use a stronger penalty, fewer steps, or fewer examples",
    ):
        space.apply(lambda e: 1 / (e + 1e-9), randn(60, 1), tolerance=1e-12, limit=10)


def test_displacements_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpv.estimators.kernel.available_bytes", lambda device: 1000)
    with pytest.raises(
        tpv.TPVError,
        match=r"HutchPlusPlus\(rank=64, draws=8\) keeps 72 displacements of the weights, .* GiB may be used: give a lower rank",
    ):
        tpv.estimate(mlp(), TEST, law(), estimator=tpv.HutchPlusPlus())


# ---------------------------------------------------------------------------------------------------------------------
# A spec keeps nothing, and calls share a kernel that they are given
# ---------------------------------------------------------------------------------------------------------------------


def grams(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the two sides are the same, for every kernel that is written out."""
    written: list[bool] = []
    original = tpv.ntk.operator.gram

    def counted(left: Any, right: Any, names: Any) -> Tensor:
        written.append(left is right)
        return original(left, right, names)

    monkeypatch.setattr("tpv.ntk.operator.gram", counted)
    return written


def test_a_shared_kernel_gives_the_same_numbers_and_is_written_out_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlp()
    written = grams(monkeypatch)
    shared = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN))
    estimators = (tpv.Auto(), tpv.LinearizedMonteCarlo(3), tpv.HutchPlusPlus(3, 2))
    found = [value(model, x, shared, estimator=e) for x in (TEST, TRAIN) for e in estimators]
    found.append(tpv.linearity(model, TEST, shared).value)
    assert written == [True]
    fresh = [value(model, x, law(), estimator=e) for x in (TEST, TRAIN) for e in estimators]
    fresh.append(tpv.linearity(model, TEST, law()).value)
    assert found == fresh
    assert len(written) == 1 + len(fresh)
    assert tpv.stability(model, TRAIN, TEST, shared).ratio == tpv.stability(model, TRAIN, TEST, law()).ratio


def test_stability_writes_out_each_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = grams(monkeypatch)
    tpv.stability(mlp(), TRAIN, TEST, law())
    assert written == [True] * 3  # of all training inputs, and of each half


def test_prepared_noise_has_its_kernel() -> None:
    model = mlp()
    without = tpv.LabelNoise(STD, fit=FITS[1])
    assert without.needs_training_data
    for spec in (without.prepared(model, TRAIN), law().prepared(model, TEST)):
        assert not spec.needs_training_data
        assert spec.kernel.shape == (30, 30)
        assert spec.prepared(model, TEST) is spec
        assert value(model, TEST, spec) == value(model, TEST, law())


def changed_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight[0, 0] += 0.5


def changed_buffer(model: nn.Module) -> None:
    model.scale.mul_(2)


def other_parameters(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def frozen(model: nn.Module) -> None:
    model[0].requires_grad_(False)


def widened_weights(model: nn.Module) -> None:
    model.float().double()


def network_with_buffer() -> nn.Module:
    model = mlp()
    model.register_buffer("scale", torch.ones(()).double(), persistent=False)
    model.register_forward_hook(lambda module, args, z: z * module.scale)
    return model


@pytest.mark.parametrize(
    "change", [changed_weight, changed_buffer, other_parameters, frozen, widened_weights]
)
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(3)], ids=repr)
def test_a_changed_network_gets_its_own_numbers(
    change: Callable[[nn.Module], None], estimator: tpv.Estimator
) -> None:
    model, noise = network_with_buffer(), law()
    value(model, TEST, noise, estimator=estimator)
    change(model)
    fresh = value(model, TEST, law(), estimator=estimator)
    assert value(model, TEST, noise, estimator=estimator) == pytest.approx(fresh, rel=1e-12)


@pytest.mark.parametrize("change", [changed_weight, changed_buffer])
def test_a_kernel_of_other_weights_is_refused(change: Callable[[nn.Module], None]) -> None:
    model = network_with_buffer()
    noise = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN))
    value(model, TEST, noise)
    change(model)
    with pytest.raises(tpv.TPVError, match="the kernel is of another model, or this model's weights"):
        value(model, TEST, noise)
    with pytest.raises(tpv.TPVError, match="the kernel is of another model, or this model's weights"):
        tpv.linearity(model, TEST, noise)


@pytest.mark.parametrize(
    ("kernel", "options", "call", "sentence"),
    [
        ({}, {"params": "2.*"}, {}, "the kernel is of 4 parameters and 2 are selected"),
        ({"params": "2.*"}, {}, {}, "the kernel is of 2 parameters and 4 are selected"),
        ({}, {}, {"forward": lambda model, batch: model(2 * batch)}, "give tpv.NTK and the call the same forward="),
        ({"forward": lambda model, batch: model(2 * batch)}, {}, {}, "give tpv.NTK and the call the same forward="),
        ({}, {}, {"output": lambda z: z[:, 1:]}, "give tpv.NTK and the call the same forward="),
    ],
)  # fmt: skip
def test_a_kernel_of_something_else_is_refused(
    kernel: dict[str, Any], options: dict[str, Any], call: dict[str, Any], sentence: str
) -> None:
    model = mlp()
    noise = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN, **kernel), **options)
    with pytest.raises(tpv.TPVError, match=sentence):
        value(model, TEST, noise, **call)


def test_another_network_or_forward_with_the_same_weights_gets_its_own_numbers() -> None:
    noise, tanh = law(), mlp()
    other = nn.Sequential(tanh[0], nn.Tanh(), tanh[2]).eval()
    other.register_forward_hook(lambda module, args, z: torch.sin(z))
    doubled = lambda model, batch: model(2 * batch)  # noqa: E731
    for model, forward in ((tanh, None), (other, None), (tanh, doubled), (tanh, None)):
        assert value(model, TEST, noise, forward=forward) == value(model, TEST, law(), forward=forward)
    assert value(other, TEST, law()) != value(tanh, TEST, law()) != value(tanh, TEST, law(), forward=doubled)


def test_a_network_with_another_setting_gets_its_own_numbers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = mlp(), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.inner(x)

    model, noise = Scaled(), law()
    value(model, TEST, noise)
    model.scale = 2.0
    assert value(model, TEST, noise) == value(model, TEST, law())
    model.inner[1] = nn.Sigmoid()
    assert value(model, TEST, noise) == value(model, TEST, law())


# ---------------------------------------------------------------------------------------------------------------------
# Training inputs against unseen inputs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [10, 9])
def test_cross_fitting_by_hand(examples: int) -> None:
    model, train = mlp(), TRAIN[:examples]
    result = tpv.stability(model, train, TEST, law(data=train), generator=3)
    first = torch.randperm(examples, generator=seeded(3)) < examples // 2
    halves = train[first], train[~first]
    assert len(halves[0]) == examples // 2
    across = [tpv.estimate(model, b, law(data=a)) for a, b in (halves, halves[::-1])]
    unseen = [tpv.estimate(model, TEST, law(data=a)) for a in halves]
    n = [r.n_examples for r in across]
    share = [x / examples for x in n]
    assert n == [examples - examples // 2, examples // 2]
    assert result.cross_fitted.value == pytest.approx(
        sum(p * r.value for p, r in zip(share, across, strict=True)), rel=1e-12
    )
    assert result.cross_fitted.stderr == pytest.approx(
        math.hypot(*(p * r.stderr for p, r in zip(share, across, strict=True))), rel=1e-12
    )
    assert result.test_of_halves.value == pytest.approx(statistics.fmean(r.value for r in unseen), rel=1e-12)
    assert result.test_of_halves.stderr == pytest.approx(
        statistics.fmean(r.stderr for r in unseen), rel=1e-12
    )
    assert (result.cross_fitted.n_examples, result.test_of_halves.n_examples) == (examples, 8)
    assert result.ratio == result.cross_fitted.value / result.test_of_halves.value
    assert result.in_sample_ratio.value == result.train.value / result.test.value
    assert result.train.value == value(model, train, law(data=train))
    assert result.test.value == value(model, TEST, law(data=train))
    assert result.cross_fitted.metadata["noise_on"] == "each half of the training examples in turn"


def test_cross_fitting_pairs_the_draws_of_both_sides() -> None:
    result = tpv.stability(mlp(), TRAIN, TEST, law(), estimator=tpv.LinearizedMonteCarlo(50))
    assert len(result.cross_fitted.draws) == len(result.test_of_halves.draws) == 50
    assert torch.corrcoef(torch.tensor([result.cross_fitted.draws, result.test_of_halves.draws]))[0, 1] > 0.5
    assert math.isnan(result.leverage)
    assert "reproduces a part of the noise" in str(result)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cross_fitted_inputs_tell_what_unseen_inputs_see(seed: int) -> None:
    torch.manual_seed(seed)
    model = settled(nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3)))
    train, test = randn(60, 10, seed=10 + seed), randn(200, 10, seed=20 + seed)
    result = tpv.stability(model, train, test, law(Ridge(1e-4), train))
    assert abs(result.ratio - 1) < 4 * result.ratio_stderr
    assert result.ratio_stderr < 0.25
    assert result.in_sample_ratio.value < 1 - 4 * result.in_sample_ratio.stderr


@pytest.mark.parametrize(("outputs", "center"), [(1, True), (3, True), (3, False)])
def test_leverage_is_the_part_of_the_noise_that_is_followed(outputs: int, center: bool) -> None:
    model, x, t = linear(20, outputs), randn(6, 20), randn(5, 20)
    assert tpv.stability(model, x, t, law(Interpolation(), x, center=center)).leverage == pytest.approx(
        1, rel=1e-6
    )
    half = tpv.stability(model, x, t, law(Ridge(0.5), x, center=center))
    assert 0.1 < half.leverage < 0.99
    assert half.leverage == pytest.approx(
        half.train.spectrum.degrees_of_freedom / (6 * max(outputs - center, 1)), rel=1e-12
    )


def test_the_noise_of_stability_is_on_its_training_inputs() -> None:
    one, pair = TRAIN[:1], TRAIN[:2]
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN + 1e-9, TEST, law())
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN[:-1], TEST, law())
    with pytest.raises(tpv.TPVError, match="must be the data of the LabelNoise itself"):
        tpv.stability(mlp(), TRAIN.flip(0), TEST, law())
    same = tpv.stability(mlp(), TRAIN, TEST, law())
    for train in (TRAIN.clone(), list(TRAIN.split(3)), [(TRAIN, torch.arange(10))]):
        assert tpv.stability(mlp(), train, TEST, law()).ratio == pytest.approx(same.ratio, rel=1e-10)
    with pytest.raises(tpv.TPVError, match="at least two training examples, and there is 1"):
        tpv.stability(mlp(), one, TEST, law(data=one))
    assert "cannot tell" in tpv.stability(mlp(), pair, TEST, law(data=pair)).verdict


# ---------------------------------------------------------------------------------------------------------------------
# Texts and files
# ---------------------------------------------------------------------------------------------------------------------


def test_results_survive_json(tmp_path: Any) -> None:
    result = tpv.estimate(mlp(), TEST, law())
    again = tpv.TPVResult.from_json(result.to_json(tmp_path / "r.json"))
    assert again == result
    assert again.spectrum == result.spectrum
    assert isinstance(again.spectrum.eigenvalues, tuple)
    text = tpv.stability(mlp(), TRAIN, TEST, law()).to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    stable = tpv.StabilityResult.from_json(text)
    assert stable.to_json() == text
    assert stable.cross_fitted.value > 0
    assert stable.ratio == tpv.stability(mlp(), TRAIN, TEST, law()).ratio
    assert stable.leverage == pytest.approx(0.191, abs=1e-3)
    assert (
        tpv.StabilityResult.from_json(
            tpv.stability(mlp(), TRAIN, TEST, tpv.Isotropic(0.1)).to_json()
        ).cross_fitted
        is None
    )


def test_the_text_of_an_estimate() -> None:
    assert str(tpv.estimate(mlp(), TEST, law())) == (
        "TPV 0.0019 ± 0.0003 squared centred logits   (Monte-Carlo standard error 0)\n"
        "one draw: ± 0.0013\n"
        "LabelNoise(std=0.1, fit=Ridge(gamma=0.5))\n"
        "8 examples, Exact(), through the kernel, seed 0\n"
        "\n"
        "20 directions, 3.82 degrees of freedom; the 3 largest eigenvalues carry half of the value\n"
        "\n"
        "no split by layer: label noise moves all layers at once, and their contributions do not add up"
    )
    assert "one draw" not in str(tpv.estimate(mlp(), TEST, law(), estimator=tpv.HutchPlusPlus(3, 3)))


def test_the_text_of_a_comparison() -> None:
    assert str(tpv.stability(mlp(), TRAIN, TEST, law())) == (
        "LabelNoise(std=0.1, fit=Ridge(gamma=0.5))\n"
        "Exact(), through the kernel\n"
        "in squared centred logits\n"
        "\n"
        "                                            TPV  examples\n"
        "train, in sample                0.0019 ± 0.0002        10\n"
        "test                            0.0019 ± 0.0003         8\n"
        "train, cross-fitted             0.0030 ± 0.0003        10\n"
        "test, noise of the same halves  0.0033 ± 0.0006         8\n"
        "train/test                            1.0 ± 0.2\n"
        "train/test, cross-fitted            0.92 ± 0.18\n"
        "\n"
        "In sample the fit reproduces 19.1 % of the noise that it is evaluated with (its leverage),\n"
        "which unseen inputs do not see; cross-fitted, the noise of one half of the training inputs is\n"
        "evaluated on the other half, against the same noise on the test inputs (half as many examples\n"
        "constrain the network less, so both are larger than the value above).\n"
        "\n"
        "Cross-fitted: cannot tell: the interval of the ratio crosses the band of a factor of 1.5"
    )


def test_spectra_say_where_half_of_the_value_is() -> None:
    spectrum = tpv.results.spectrum.Spectrum(
        (4.0, 2.0, 1.0), (0.25, 0.25, 0.0), (1.0, 3.0, 0.5), (2.0, 0.5, 0.0)
    )
    assert spectrum.degrees_of_freedom == 1.5
    assert spectrum.alpha[:2] == (0.5, 6.0)
    assert math.isnan(spectrum.alpha[2])
    assert (
        str(spectrum)
        == "3 directions, 1.5 degrees of freedom; the 2 largest eigenvalues carry half of the value"
    )


def test_facts() -> None:
    found = tpv.estimate(mlp(), TEST, law(GradientDescent(lr=None, steps=5))).metadata
    assert found["kernel"] == "NTK(10 examples, 30 outputs, 51 parameters, float64, dense)"
    assert (found["train_examples"], found["train_outputs"], found["noise_dimensions"]) == (10, 30, 20)
    assert found["fit"].startswith("GradientDescent(lr=0.73")
    assert found["output"] == "centered logits"
    assert (
        repr(law(relative=True, params="0.*"))
        == "LabelNoise(std=0.1, fit=Ridge(gamma=0.5), relative=True, params='0.*')"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: law(std=0), r"LabelNoise\(std=0\): std must be a number in \(0, inf\)"),
        (lambda: law(std=-0.1), r"std must be a number in \(0, inf\)"),
        (lambda: law(std=math.nan), r"std must be a number in \(0, inf\)"),
        (lambda: law("ridge"), r"LabelNoise\(fit=\.\.\.\) is a str: give std, .* tpv\.Interpolation\(\), tpv\.Ridge"),
        (lambda: law(Ridge), r"fit=\.\.\.\) is a ABCMeta"),
        (lambda: Ridge(0), r"Ridge\(gamma=0\) is no penalty: gamma must be above 0, or use Interpolation"),
        (lambda: Ridge(-1), r"gamma must be a number in \(0, inf\)"),
        (lambda: Interpolation(0), r"rcond must be a number in \(0, 1\)"),
        (lambda: Interpolation(1), r"rcond must be a number in \(0, 1\)"),
        (lambda: GradientDescent(lr=0, steps=1), r"lr must be a number in \(0, inf\)"),
        (lambda: GradientDescent(lr=0.1, steps=0), "steps must be an int of at least 1"),
        (lambda: GradientDescent(lr=0.1, steps=1.5), "steps must be an int"),
        (lambda: GradientDescent(lr=0.1, steps=1, momentum=1), r"momentum must be a number in \[0, 1\)"),
        (lambda: GradientDescent(lr=0.1, steps=1, gamma=-1), r"gamma must be a number in \[0, inf\)"),
        (lambda: tpv.HutchPlusPlus(rank=0), "rank must be an int of at least 1"),
        (lambda: tpv.HutchPlusPlus(draws=1), "draws must be an int of at least 2"),
        (lambda: value(mlp(), TEST, law(data=[])), "the training data is empty: it gave no batch"),
        (lambda: value(mlp(), TEST, law(data=iter([TRAIN]))), "one-shot iterator"),
        (lambda: value(mlp(), [], law()), "data is empty"),
        (lambda: value(mlp(), TEST, law(params="9.*")), "matches no trainable parameter"),
        (lambda: value(mlp(), TEST, law(data=TRAIN * math.inf)), "the batch holds NaN or infinity"),
        (lambda: value(mlp(), TEST, tpv.Isotropic(0.1), estimator=tpv.HutchPlusPlus()), r"is for LabelNoise, and this is Isotropic\(std=0\.1\)"),
    ],
)  # fmt: skip
def test_bad_input(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        make()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_a_learning_rate_that_diverges_is_refused_by_its_true_bound(momentum: float, gamma: float) -> None:
    model = mlp()
    largest = torch.linalg.eigvalsh(dense(model, TRAIN, center=True) @ dense(model, TRAIN, center=True).T)[
        -1
    ].item()
    bound = 2 * (1 + momentum) / (2 * largest / 30 + gamma)

    def fitted(lr: float, steps: int = 4000) -> float:
        return value(model, TEST, law(GradientDescent(lr, steps, momentum, gamma)))

    with pytest.raises(
        tpv.TPVError, match=f"diverges: on this network and data lr must be below {bound:.3g}, 2"
    ) as caught:
        fitted(bound * 1.0001)
    assert "GradientDescent(lr=" in str(caught.value)
    assert fitted(bound * 0.9999) < 10 * fitted(bound / 2)
    step = GradientDescent(bound * 1.01, 4000, momentum, gamma)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientDescent, "_refuse_divergence", lambda *_: None)
        assert step.filter(torch.tensor([largest]).double(), 30, largest).abs() > 1e6


@pytest.mark.parametrize(
    "estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(2), tpv.HutchPlusPlus(2, 2)], ids=repr
)
@pytest.mark.parametrize("free", [False, True])
def test_a_kernel_of_zero_is_refused(
    estimator: tpv.Estimator, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if free and isinstance(estimator, tpv.Exact):
        pytest.skip("Exact() writes the kernel out")
    model = mlp()
    nn.init.zeros_(model[2].weight)
    if free:
        monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)
    with pytest.raises(tpv.TPVError, match="the kernel of the training data is zero"):
        value(model, TEST, law(params="0.*"), estimator=estimator)


def test_relative_noise_needs_outputs() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    with pytest.raises(tpv.TPVError, match="all training outputs are 0: give an absolute std"):
        value(model, TEST, law(relative=True))


def test_copies_are_told() -> None:
    copies = torch.cat([TRAIN, TRAIN[:2], TRAIN[:1]])
    with pytest.warns(
        UserWarning, match="3 of the 13 training examples are copies of others: their kernel is singular"
    ):
        found = value(mlp(), TEST, law(data=list(copies.split(4))))
    j, j_test = (dense(mlp(), x, center=True) for x in (copies, TEST))
    assert found == pytest.approx(STD**2 / 8 * moved(j_test, j, FITS[1]).square().sum().item(), rel=1e-10)


def test_examples_that_differ_in_what_the_forward_reads_are_no_copies() -> None:
    def both(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0] + batch[1])

    batch = (torch.ones_like(TRAIN), TRAIN - 1)
    assert value(mlp(), [batch], law(data=[batch]), forward=both) == pytest.approx(
        value(mlp(), TRAIN, law()), rel=1e-12
    )

    def named(model: nn.Module, batch: Any) -> Tensor:
        lookup = {f"{i}": row for i, row in enumerate(TRAIN)}
        return model(torch.stack([lookup[name] for name in batch["names"]]) + batch["offset"])

    texts = {"names": [f"{i}" for i in range(10)], "offset": torch.zeros(10, 1).double()}
    assert value(
        mlp(), TEST, law(data=[texts]), forward=lambda m, b: named(m, b) if isinstance(b, dict) else m(b)
    ) == pytest.approx(value(mlp(), TEST, law()), rel=1e-12)


def test_numbers_that_rounding_decides_are_told() -> None:
    torch.manual_seed(0)
    model = settled(nn.Linear(3, 1, bias=False))
    x = randn(40, 3) * torch.tensor([1.0, 1.0, 1e-5]).double()
    assert value(model, TEST[:, :3], law(Interpolation(1e-13), x)) > 0
    with pytest.warns(
        UserWarning,
        match=r"100 % of the label-noise TPV comes from eigenvalues within a factor of 10 of rcond=3e-11",
    ):
        value(model, TEST[:, :3], law(Interpolation(3e-11), x))
    x[:, 2] *= 1e-2
    with pytest.warns(UserWarning, match=r"\d+ % .* at the level of the kernel's rounding"):
        value(model, TEST[:, :3], law(Ridge(1e-16), x))


def test_shuffled_training_data_are_refused() -> None:
    loader = DataLoader(TensorDataset(TRAIN), batch_size=2, shuffle=True, generator=seeded(0))
    with pytest.raises(tpv.TPVError, match="in another order"):
        value(mlp(), TEST, law(data=loader))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.02)]
)
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(8)], ids=repr)
def test_narrow_weights(dtype: torch.dtype, tolerance: float, estimator: tpv.Estimator) -> None:
    found = value(mlp().to(dtype), TEST.to(dtype), law(data=TRAIN.to(dtype)), estimator=estimator)
    assert found == pytest.approx(value(mlp(), TEST, law(), estimator=estimator), rel=tolerance)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_faults_leave_the_model_unchanged(error: type[BaseException]) -> None:
    with warnings.catch_warnings():
        survived = faults_survived(
            error, itertools.count(1, 7), mlp, lambda model: tpv.stability(model, TRAIN, TEST, law())
        )
    assert survived >= 10
