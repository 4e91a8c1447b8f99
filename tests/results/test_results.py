"""Results: tables, JSON, pandas, plots, verdicts."""

from __future__ import annotations

import json
import math

import pytest
import torch
from cases import randn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tpv


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_the_table_is_the_text() -> None:
    result = tpv.TPVResult(
        38.82, 0.53, 0.2, 4000, {"layer1.0.conv1": tpv.Estimate(30.1, 0.4, 0.1), "head": tpv.Estimate(8.72, 0.11, 0.1)},
        metadata={"perturbation": "Quantization(bits=4)", "estimator": "Hutchinson(probes=1)", "seed": 0},
    )  # fmt: skip
    assert str(result) == (
        "TPV 38.8 ± 0.5   (probes or draws alone: ± 0.2)\n"
        "Quantization(bits=4)\n"
        "4000 examples, Hutchinson(probes=1), seed 0\n"
        "\n"
        "layer                   TPV   share\n"
        "layer1.0.conv1   30.1 ± 0.4  77.5 %\n"
        "head            8.72 ± 0.11  22.5 %"
    )
    assert repr(result) == str(result)


def test_many_layers_are_summed_up_and_a_missing_split_says_why() -> None:
    layers = {f"layer{i}": tpv.Estimate(1.0, 0.1, 0.0) for i in range(13)}
    assert "3 more" in str(tpv.TPVResult(13.0, 0.1, 0.0, 10, layers))
    fixed = tpv.estimate(network(), randn(3, 4), tpv.Quantization(error="actual"))
    assert "no split by layer: a fixed displacement" in str(fixed)


@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.MonteCarlo(1), tpv.MonteCarlo(3)])
def test_json_round_trips(estimator: tpv.Estimator, tmp_path) -> None:
    result = tpv.estimate(network(), randn(3, 4), tpv.Isotropic(0.1), estimator=estimator)
    text = result.to_json(tmp_path / "r.json")
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    for source in (text, tmp_path / "r.json", str(tmp_path / "r.json")):
        again = tpv.TPVResult.from_json(source)
        assert again.to_dict() == result.to_dict()
        assert math.isnan(again.stderr) == math.isnan(result.stderr)
    assert tpv.TPVResult.from_dict(result.to_dict()).layers == result.layers


def test_other_results_round_trip() -> None:
    model, law = network(), tpv.Isotropic(0.1)
    stability = tpv.stability(model, randn(6, 4), randn(5, 4, seed=1), law)
    again = tpv.StabilityResult.from_json(stability.to_json())
    assert again.ratio == stability.ratio
    assert again.to_dict() == stability.to_dict()
    linearity = tpv.linearity(model, randn(6, 4), law)
    assert tpv.LinearityResult.from_json(linearity.to_json()).to_dict() == linearity.to_dict()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("{}", "not a saved TPVResult"),
        ('{"type": "StabilityResult"}', "not a saved TPVResult but 'StabilityResult'"),
        ('{"type": "TPVResult", "colour": 1}', "no field 'colour'"),
    ],
)
def test_foreign_json_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        tpv.TPVResult.from_json(text)


def test_metadata_tells_where_the_number_came_from() -> None:
    result = tpv.estimate(network(), randn(6, 4), tpv.Quantization(bits=4), generator=5, chunk_size=4)
    meta = result.metadata
    assert (meta["perturbation"], meta["estimator"], meta["seed"], meta["outputs"], meta["chunk_size"]) == ("Quantization(bits=4)", "Exact()", 5, 3, 4)  # fmt: skip
    assert (meta["parameters"], meta["device"], meta["dtype"]) == (43, "cpu", "float64")
    assert set(meta["versions"]) == {"tpv", "torch", "python"}
    assert meta["seconds"] > 0


def test_pandas_has_a_row_per_layer() -> None:
    result = tpv.estimate(network(), randn(6, 4), tpv.Isotropic(0.1))
    frame = result.to_pandas()
    assert list(frame.index) == ["0", "2"]
    assert frame["share"].sum() == pytest.approx(1)
    assert frame["value"].sum() == pytest.approx(result.value)


@pytest.mark.parametrize(
    "batch",
    [lambda x, y: x, lambda x, y: (x, y), lambda x, y: {"input": x, "labels": y}],
    ids=["tensor", "tuple", "mapping"],
)
def test_batches_of_every_form_give_the_same(batch) -> None:
    x, y = randn(6, 4), torch.zeros(6)
    expected = tpv.estimate(network(), x, tpv.Isotropic(0.1)).value
    assert tpv.estimate(
        network(), [batch(x[:4], y[:4]), batch(x[4:], y[4:])], tpv.Isotropic(0.1)
    ).value == pytest.approx(expected)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    assert tpv.estimate(network(), loader, tpv.Isotropic(0.1)).value == pytest.approx(expected)
    named = tpv.estimate(
        network(), loader, tpv.Isotropic(0.1), forward=lambda model, batch: model(batch[0])[:, :1]
    )
    assert named.value < expected


def test_progress_counts_examples() -> None:
    seen: list[tuple[int, int | None]] = []
    tpv.estimate(
        network(), randn(6, 4), tpv.Isotropic(0.1), chunk_size=4, progress=lambda *step: seen.append(step)
    )
    assert seen == [(4, 6), (6, 6)]


def test_stability_verdicts() -> None:
    def result(value: float, stderr: float) -> tpv.TPVResult:
        return tpv.TPVResult(value, stderr, 0.0, 100, {"a": tpv.Estimate(value, stderr, 0.0)})

    def verdict(train: tuple[float, float], test: tuple[float, float]) -> str:
        return tpv.StabilityResult(result(*train), result(*test)).verdict

    assert "within a factor of 1.5" in verdict((1.0, 0.01), (1.1, 0.01))
    assert "mislead" in verdict((1.0, 0.01), (2.0, 0.01))
    assert "cannot tell" in verdict((1.0, 0.3), (1.0, 0.3))
    assert "cannot tell" in verdict((1.0, math.nan), (1.0, 0.3))
    pair = tpv.StabilityResult(result(1.0, 0.01), result(2.0, 0.01))
    assert pair.layers["a"].value == pair.ratio == 0.5
    assert "train/test" in str(pair)


def test_stability_pairs_draws() -> None:
    model, law = network(), tpv.Isotropic(0.01)
    pair = tpv.stability(
        model, randn(300, 4), randn(300, 4, seed=1), law, estimator=tpv.LinearizedMonteCarlo(8)
    )
    unpaired = math.hypot(pair.train.stderr, pair.ratio * pair.test.stderr) / pair.test.value
    assert pair.ratio_stderr < 0.5 * unpaired
    assert abs(pair.ratio - 1) < 4 * pair.ratio_stderr


@pytest.mark.parametrize(
    ("v", "stderr", "words"),
    [
        (0.01, 0.001, "first order holds"),
        (0.2, 0.01, "first order wavers: use MonteCarlo"),
        (0.36, 0.01, "wavers or fails"),
        (0.9, 0.01, "first order fails"),
        (0.119, 0.01, "cannot tell: V is within two standard errors of 0.12"),
        (math.nan, math.nan, "changes no output"),
    ],
)
def test_linearity_verdicts(v: float, stderr: float, words: str) -> None:
    assert words in tpv.LinearityResult(v, stderr, 0.0, 1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 10).verdict


def test_a_displacement_without_effect_cannot_tell() -> None:
    model = network()
    assert "cannot tell" in str(
        tpv.linearity(model, randn(3, 4), tpv.Displacement(dict(model.named_parameters())))
    )


def test_large_displacements_are_not_linear() -> None:
    result = tpv.linearity(network(), randn(20, 4), tpv.Isotropic(3.0), draws=20)
    assert result.value > 0.12
    assert not result.holds
    assert result.first_order / result.finite == pytest.approx(result.quotient)
