"""Label noise against dense algebra, draws, and the theory of least squares."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import bound, faults_survived, filtered, randn, seeded, settled
from kernels import (
    FITS,
    STD,
    TEST,
    TRAIN,
    assert_close,
    dense,
    flat,
    label_noise,
    language_model,
    linear,
    mean_free,
    mlp,
    output_changes,
    rows_of,
    value,
    words,
    z_score,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tpv
from tpv import GradientDescent, Interpolation, Ridge
from tpv.model.batches import batch_size
from tpv.model.regrouping import LargeBatches
from tpv.testing import assert_unchanged, dense_jacobian


@pytest.mark.parametrize("fit", FITS, ids=repr)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_closed_form(fit: tpv.ntk.Fit, center: bool, outputs: int) -> None:
    model = mlp(outputs)
    centered = center and outputs > 1
    j, j_test = (dense(model, x, centered) for x in (TRAIN, TEST))
    noise = label_noise(fit, center=center)
    with assert_unchanged(model):
        result = tpv.estimate(model, TEST, noise)
    shifts = STD * output_changes(j_test, j, fit)
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
    found = value(model, TEST, label_noise(center=center), output=output)
    assert found == pytest.approx(
        STD**2 / 8 * output_changes(j_test, j, FITS[1]).square().sum().item(), rel=1e-10
    )


def test_the_read_out_is_what_the_loss_sees_unless_asked_for() -> None:
    model = mlp()
    for center, name in ((True, "centered"), (False, "logits")):
        assert value(model, TEST, label_noise(center=center)) == value(
            model, TEST, label_noise(center=center), output=name
        )
    assert value(model, TEST, label_noise(), output="logits") > 1.0001 * value(model, TEST, label_noise())


def test_relative_noise_is_in_units_of_the_outputs() -> None:
    model = mlp()
    magnitude = model(TRAIN).detach().abs().mean().item()
    result = tpv.estimate(model, TEST, label_noise(relative=True))
    assert result.value == pytest.approx(magnitude**2 * value(model, TEST, label_noise()), rel=1e-12)
    assert result.metadata["noise_std"] == pytest.approx(STD * magnitude, rel=1e-12)


def test_params_choose_what_is_trained() -> None:
    model = mlp()
    j, j_test = (
        rows_of({n: g for n, g in dense_jacobian(model, x).items() if n.startswith("2.")})
        for x in (TRAIN, TEST)
    )
    noise = label_noise(Ridge(0.2), params="2.*", center=False)
    assert value(model, TEST, noise) == pytest.approx(
        STD**2 / 8 * output_changes(j_test, j, Ridge(0.2)).square().sum().item(), rel=1e-10
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

    shifts = STD * output_changes(rows(test), rows(train), FITS[1], outputs=8 * 7)
    expected = shifts.square().sum().item() / 6
    noise = label_noise(data=train, center=center)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        result = tpv.estimate(model, [test[i] for i in order], noise)
        assert result.value == pytest.approx(expected, rel=1e-10)
        assert result.metadata["train_outputs"] == 56
    drawn = tpv.estimate(model, test, noise, estimator=tpv.LinearizedMonteCarlo(512))
    assert abs(z_score(drawn, expected)) < 4
    assert all((bound(noise, model).sample(seeded(s))["embedding.weight"][0] == 0).all() for s in range(3))


@pytest.mark.parametrize(("outputs", "center", "factor"), [(1, True, 1), (3, False, 3), (3, True, 2)])
def test_least_squares_with_more_examples_than_weights(outputs: int, center: bool, factor: int) -> None:
    model, x, t = linear(4, outputs), randn(30, 4), randn(50, 4, seed=1)
    noise = label_noise(Interpolation(), x, center=center)
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
    noise = label_noise(Interpolation(), x, center=center)
    assert value(model, x, noise) == pytest.approx(STD**2 * factor, rel=1e-10)
    expected = STD**2 * factor * (t @ torch.linalg.pinv(x)).square().sum().item() / 9
    assert value(model, t, noise) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(4), tpv.HutchPlusPlus(4, 4)], ids=repr
)
def test_noise_times_a_is_tpv_times_a_squared(estimator: tpv.Estimator) -> None:
    model = mlp()
    a, b = (value(model, TEST, label_noise(std=std), estimator=estimator) for std in (STD, 3 * STD))
    assert b == pytest.approx(9 * a, rel=1e-10)


class Rotated(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rotation", torch.linalg.qr(randn(3, 3))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.rotation


def test_rotating_the_outputs_changes_nothing_unless_they_are_centered() -> None:
    plain, rotated = (value(m, TEST, label_noise(center=False)) for m in (mlp(), Rotated(mlp())))
    assert rotated == pytest.approx(plain, rel=1e-10)
    assert abs(value(Rotated(mlp()), TEST, label_noise()) / value(mlp(), TEST, label_noise()) - 1) > 0.01


@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.HutchPlusPlus(30, 2)], ids=repr)
def test_order_and_size_of_batches_do_not_matter(estimator: tpv.Estimator) -> None:
    model, expected = mlp(), value(mlp(), TEST, label_noise())
    loader = DataLoader(TensorDataset(TRAIN, torch.zeros(10)), batch_size=4)
    for train in (TRAIN.flip(0), list(TRAIN.split(1)), list(TRAIN.split([7, 3])), loader):
        for test in (TEST.flip(0), list(TEST.split(3))):
            assert value(model, test, label_noise(data=train), estimator=estimator) == pytest.approx(
                expected, rel=1e-10
            )
    whole = tpv.estimate(model, TEST, label_noise(), estimator=estimator)
    for chunk_size in (1, 3, 100):
        result = tpv.estimate(model, TEST, label_noise(), chunk_size=chunk_size, estimator=estimator)
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
        mlp(),
        [mapping(x) for x in TEST.split(1)],
        label_noise(),
        progress=lambda event: seen.append(event.done) if event.stage == "measuring" else None,
    )
    assert result.value == pytest.approx(value(mlp(), TEST, label_noise()), rel=1e-12)
    assert seen[-1] == 8
    assert set(seen) == {0, 8}


def test_layers_are_refused_with_a_reason() -> None:
    result = tpv.estimate(mlp(), TEST, label_noise())
    assert result.layers == {}
    assert "all layers at once" in result.no_layers


def test_draws_name_other_estimators_for_the_split_only_where_they_have_one() -> None:
    draws = tpv.LinearizedMonteCarlo(2)
    noise, isotropic = label_noise(), tpv.Isotropic(0.1)
    reasons = [tpv.estimate(mlp(), TEST, p, estimator=draws).no_layers for p in (noise, isotropic)]
    assert ["Hutchinson" in reason for reason in reasons] == [False, True]


@pytest.mark.parametrize(
    ("fit", "instead"),
    [
        (tpv.GradientDescent(lr=0.01, steps=3), "Retraining"),
        (tpv.Ridge(0.1), "Retraining with a GradientDescent fit"),
        (tpv.Interpolation(), "Retraining with a GradientDescent fit"),
    ],
)
def test_linearity_names_what_follows_the_fit(fit: tpv.Fit, instead: str) -> None:
    for noise in (label_noise(fit), label_noise(fit) + tpv.Isotropic(0.1)):
        assert tpv.linearity(mlp(), TEST, noise, draws=2).metadata["finite_by"] == instead


def test_retraining_is_finite_already() -> None:
    again = tpv.Retraining(label_noise(tpv.GradientDescent(lr=0.01, steps=3)), runs=2)
    assert tpv.linearity(mlp(), TEST, again, draws=2).metadata["finite_by"] == ""


@pytest.mark.parametrize("fit", [FITS[0], FITS[1], FITS[6]], ids=repr)
@pytest.mark.parametrize("center", [True, False])
def test_draws_agree(fit: tpv.ntk.Fit, center: bool) -> None:
    model, noise = mlp(), label_noise(fit, center=center)
    exact = tpv.estimate(model, TEST, noise)
    drawn = tpv.estimate(model, TEST, noise, estimator=tpv.LinearizedMonteCarlo(600))
    assert abs(z_score(drawn, exact.value)) < 4
    draws = torch.tensor(drawn.draws).double()
    squares = (draws - draws.mean()).square()
    assert abs((squares.mean() - exact.draw_std**2) / (squares.std() / 600**0.5)) < 4


def test_displacements_have_the_covariance_of_the_formula() -> None:
    model, noise = mlp(), label_noise()
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
    model, noise = mlp(), label_noise()
    j = dense(model, TRAIN, center=True)
    epsilon = mean_free(torch.randn(10, 3, generator=seeded(4)).double()).reshape(-1)
    here = bound(noise, model)
    assert_close(here.factor.noise(seeded(4)), epsilon, 1e-6)
    expected = j.T @ filtered(j @ j.T, FITS[1], 30) @ (STD * here.factor.noise(seeded(4)))
    assert_close(flat(here.sample(seeded(4))), expected)
    assert_close(flat(here.factor.displacements(here.factor.noise(seeded(4)).unsqueeze(1))), expected)


def test_every_draw_moves_the_generator_on() -> None:
    """Also where the same noise has been fitted before."""
    model, noise = mlp(), label_noise()
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
    noises = (
        [label_noise()]
        if isinstance(estimator, tpv.HutchPlusPlus)
        else [label_noise(), label_noise() + tpv.Isotropic(0.1)]
    )
    for noise in noises:
        first, again, other = (value(mlp(), TEST, noise, estimator=estimator, generator=s) for s in (0, 0, 1))
        assert first == again != other
        model = mlp()
        same_model = [value(model, TEST, noise, estimator=estimator, generator=s) for s in (0, seeded(0), 0)]
        assert same_model == [first] * 3


def test_a_sum_with_other_noise() -> None:
    model, other = mlp(), tpv.Isotropic(0.02)
    expected = value(model, TEST, label_noise(center=False)) + value(model, TEST, other)
    drawn = tpv.estimate(
        model, TEST, label_noise(center=False) + other, estimator=tpv.LinearizedMonteCarlo(600)
    )
    assert abs(z_score(drawn, expected)) < 4
    assert drawn.metadata["train_examples"] == 10
    assert (
        tpv.estimate(model, TEST, label_noise() + other).metadata["estimator"]
        == "LinearizedMonteCarlo(draws=16)"
    )
    with pytest.raises(
        tpv.TPVError,
        match=r"LabelNoise\(std=0\.1.*\+ Isotropic\(std=0\.02\) is none of them: use LinearizedMonteCarlo",
    ):
        tpv.estimate(model, TEST, label_noise() + other, estimator=tpv.Exact())


def test_a_linear_network_moves_as_its_linearization_does() -> None:
    model = linear(4, 3)
    assert tpv.linearity(model, TEST, label_noise()).value < 1e-20
    finite = tpv.estimate(model, TEST, label_noise(), estimator=tpv.MonteCarlo(400))
    assert abs(z_score(finite, value(model, TEST, label_noise()))) < 4
    bent = [tpv.linearity(mlp(), TEST, label_noise(std=std)).value for std in (1e-3, 1e-1)]
    assert bent[0] < 1e-4
    assert bent[0] < bent[1]


def test_results_survive_json(tmp_path: Any) -> None:
    result = tpv.estimate(mlp(), TEST, label_noise())
    again = tpv.TPVResult.from_json(result.to_json(tmp_path / "r.json"))
    assert again == result
    assert again.spectrum == result.spectrum
    assert isinstance(again.spectrum.eigenvalues, tuple)
    text = tpv.stability(mlp(), TRAIN, TEST, label_noise()).to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    stable = tpv.StabilityResult.from_json(text)
    assert stable.to_json() == text
    assert stable.cross_fitted.value > 0
    assert stable.ratio == tpv.stability(mlp(), TRAIN, TEST, label_noise()).ratio
    assert stable.leverage == pytest.approx(0.191, abs=1e-3)
    assert (
        tpv.StabilityResult.from_json(
            tpv.stability(mlp(), TRAIN, TEST, tpv.Isotropic(0.1)).to_json()
        ).cross_fitted
        is None
    )


def test_the_text_of_an_estimate() -> None:
    assert str(tpv.estimate(mlp(), TEST, label_noise())) == (
        "TPV 0.0019 ± 0.0003 squared centered logits   (Monte-Carlo standard error 0)\n"
        "one draw: ± 0.0013\n"
        "LabelNoise(std=0.1, fit=Ridge(gamma=0.5))\n"
        "8 examples, Exact(), through the kernel, seed 0\n"
        "\n"
        "20 directions, 3.82 degrees of freedom; the 3 largest eigenvalues carry half of the value\n"
        "\n"
        "no split by layer: label noise moves all layers at once, and their contributions do not add up"
    )
    assert "one draw" not in str(tpv.estimate(mlp(), TEST, label_noise(), estimator=tpv.HutchPlusPlus(3, 3)))


def test_the_text_of_a_comparison() -> None:
    assert str(tpv.stability(mlp(), TRAIN, TEST, label_noise())) == (
        "LabelNoise(std=0.1, fit=Ridge(gamma=0.5))\n"
        "Exact(), through the kernel\n"
        "in squared centered logits\n"
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
        "constrain the network less, so these two TPVs are larger than the one of the row 'test').\n"
        "\n"
        "Cross-fitted: cannot tell: the ratio ± 2 standard errors lies partly outside a factor of 1.5"
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
    found = tpv.estimate(mlp(), TEST, label_noise(GradientDescent(lr=None, steps=5))).metadata
    assert found["kernel"] == "NTK(10 examples, 30 outputs, 51 parameters, float64, dense)"
    assert (found["train_examples"], found["train_outputs"], found["noise_dimensions"]) == (10, 30, 20)
    assert found["fit"].startswith("GradientDescent(lr=0.73")
    assert found["output"] == "centered logits"
    assert (
        repr(label_noise(relative=True, params="0.*"))
        == "LabelNoise(std=0.1, fit=Ridge(gamma=0.5), relative=True, params='0.*')"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: label_noise(std=0), r"LabelNoise\(std=0\): std must be a number in \(0, inf\)"),
        (lambda: label_noise(std=-0.1), r"std must be a number in \(0, inf\)"),
        (lambda: label_noise(std=math.nan), r"std must be a number in \(0, inf\)"),
        (lambda: label_noise("ridge"), r"LabelNoise\(fit=\.\.\.\) is a str: give std, .* tpv\.Interpolation\(\), tpv\.Ridge"),
        (lambda: label_noise(Ridge), r"fit=\.\.\.\) is a ABCMeta"),
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
        (lambda: value(mlp(), TEST, label_noise(data=[])), "the training data is empty: it gave no batch"),
        (lambda: value(mlp(), TEST, label_noise(data=iter([TRAIN]))), "one-shot iterator"),
        (lambda: value(mlp(), [], label_noise()), "data is empty"),
        (lambda: value(mlp(), TEST, label_noise(params="9.*")), "matches no trainable parameter"),
        (lambda: value(mlp(), TEST, label_noise(data=TRAIN * math.inf)), "the batch holds NaN or infinity"),
        (lambda: value(mlp(), TEST, tpv.Isotropic(0.1), estimator=tpv.HutchPlusPlus(rank=3)), r"HutchPlusPlus\(rank=3, draws=8\) is for LabelNoise only, and this is Isotropic\(std=0\.1\)"),
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
        return value(model, TEST, label_noise(GradientDescent(lr, steps, momentum, gamma)))

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
        value(model, TEST, label_noise(params="0.*"), estimator=estimator)


def test_relative_noise_needs_outputs() -> None:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    with pytest.raises(tpv.TPVError, match="all training outputs are 0: give an absolute std"):
        value(model, TEST, label_noise(relative=True))


def test_copies_are_told() -> None:
    copies = torch.cat([TRAIN, TRAIN[:2], TRAIN[:1]])
    with pytest.warns(
        UserWarning, match="3 of the 13 training examples are copies of others: their kernel is singular"
    ):
        found = value(mlp(), TEST, label_noise(data=list(copies.split(4))))
    j, j_test = (dense(mlp(), x, center=True) for x in (copies, TEST))
    assert found == pytest.approx(
        STD**2 / 8 * output_changes(j_test, j, FITS[1]).square().sum().item(), rel=1e-10
    )


def test_examples_that_differ_in_what_the_forward_reads_are_no_copies() -> None:
    def both(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0] + batch[1])

    batch = (torch.ones_like(TRAIN), TRAIN - 1)
    assert value(mlp(), [batch], label_noise(data=[batch]), forward=both) == pytest.approx(
        value(mlp(), TRAIN, label_noise()), rel=1e-12
    )

    def named(model: nn.Module, batch: Any) -> Tensor:
        lookup = {f"{i}": row for i, row in enumerate(TRAIN)}
        return model(torch.stack([lookup[name] for name in batch["names"]]) + batch["offset"])

    texts = {"names": [f"{i}" for i in range(10)], "offset": torch.zeros(10, 1).double()}
    assert value(
        mlp(),
        TEST,
        label_noise(data=[texts]),
        forward=lambda m, b: named(m, b) if isinstance(b, dict) else m(b),
    ) == pytest.approx(value(mlp(), TEST, label_noise()), rel=1e-12)


def test_numbers_that_rounding_decides_are_told() -> None:
    torch.manual_seed(0)
    model = settled(nn.Linear(3, 1, bias=False))
    x = randn(40, 3) * torch.tensor([1.0, 1.0, 1e-5]).double()
    assert value(model, TEST[:, :3], label_noise(Interpolation(1e-13), x)) > 0
    with pytest.warns(
        UserWarning,
        match=r"100 % of the label-noise TPV comes from eigenvalues within a factor of 10 of rcond=3e-11",
    ):
        value(model, TEST[:, :3], label_noise(Interpolation(3e-11), x))
    x[:, 2] *= 1e-2
    with pytest.warns(UserWarning, match=r"\d+ % .* at the level of the kernel's rounding"):
        value(model, TEST[:, :3], label_noise(Ridge(1e-16), x))


def test_shuffled_training_data_are_refused() -> None:
    loader = DataLoader(TensorDataset(TRAIN), batch_size=2, shuffle=True, generator=seeded(0))
    with pytest.raises(tpv.TPVError, match="in another order"):
        value(mlp(), TEST, label_noise(data=loader))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.02)]
)
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(8)], ids=repr)
def test_narrow_weights(dtype: torch.dtype, tolerance: float, estimator: tpv.Estimator) -> None:
    found = value(mlp().to(dtype), TEST.to(dtype), label_noise(data=TRAIN.to(dtype)), estimator=estimator)
    assert found == pytest.approx(value(mlp(), TEST, label_noise(), estimator=estimator), rel=tolerance)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_faults_leave_the_model_unchanged(error: type[BaseException]) -> None:
    with warnings.catch_warnings():
        survived = faults_survived(
            error, itertools.count(1, 7), mlp, lambda model: tpv.stability(model, TRAIN, TEST, label_noise())
        )
    assert survived >= 10
