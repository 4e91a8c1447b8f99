"""Results: tables, JSON, pandas, plots, verdicts."""

from __future__ import annotations

import importlib.metadata
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
        "TPV 38.8 ± 0.5   (Monte-Carlo standard error 0.2)\n"
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
    model, perturbation = network(), tpv.Isotropic(0.1)
    stability = tpv.stability(model, randn(6, 4), randn(5, 4, seed=1), perturbation)
    again = tpv.StabilityResult.from_json(stability.to_json())
    assert again.ratio == stability.ratio
    assert again.to_dict() == stability.to_dict()
    linearity = tpv.linearity(model, randn(6, 4), perturbation)
    assert tpv.LinearityResult.from_json(linearity.to_json()).to_dict() == linearity.to_dict()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("{}", "not a saved TPVResult"),
        ('{"type": "StabilityResult"}', "not a saved TPVResult but 'StabilityResult'"),
        ('{"type": "TPVResult", "colour": 1}', "no field 'colour'"),
        ('{"type": "TPVResult"}', "not a whole saved TPVResult: .*missing .*'value'"),
        ('{"type": "TPVResult", "spectrum": {"type": "Colour"}}', "knows no saved 'Colour'"),
        ("nothing.json", "nothing.json cannot be read"),
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
    seen: list[tpv.ProgressEvent] = []
    tpv.estimate(network(), randn(6, 4), tpv.Isotropic(0.1), chunk_size=4, progress=seen.append)
    assert seen == [tpv.ProgressEvent("measuring", 1, 1, done, 6) for done in (0, 4, 6)]
    seen.clear()
    tpv.stability(network(), randn(6, 4), randn(3, 4), tpv.Isotropic(0.1), progress=seen.append)
    assert [(e.stage, e.part, e.parts) for e in seen if e.done == e.total] == [
        ("train · measuring", 1, 2),
        ("test · measuring", 2, 2),
    ]
    seen.clear()
    noise = tpv.LabelNoise(0.1, randn(6, 4), tpv.Ridge(0.1))
    tpv.stability(network(), randn(6, 4), randn(3, 4), noise, progress=seen.append)
    stages = dict.fromkeys((e.part, e.stage.partition(" · ")[0]) for e in seen)
    names = ["train", "test", "cross-fitted", "cross-fitted", "test of halves", "test of halves"]
    assert list(stages) == list(enumerate(names, 1))
    assert {"train · measuring · kernel"} <= {e.stage for e in seen}
    with pytest.raises(tpv.TPVError, match="progress='bar': give True"):
        tpv.estimate(network(), randn(6, 4), tpv.Isotropic(0.1), progress="bar")


def test_stability_verdicts() -> None:
    def result(value: float, stderr: float) -> tpv.TPVResult:
        return tpv.TPVResult(value, stderr, 0.0, 100, {"a": tpv.Estimate(value, stderr, 0.0)})

    def verdict(train: tuple[float, float], test: tuple[float, float]) -> str:
        return tpv.StabilityResult(result(*train), result(*test)).verdict

    assert "is a good proxy for test TPV: within a factor of 1.5" in verdict((1.0, 0.01), (1.1, 0.01))
    assert "is not a good proxy" in verdict((1.0, 0.01), (2.0, 0.01))
    assert "cannot tell" in verdict((1.0, 0.3), (1.0, 0.3))
    assert "cannot tell" in verdict((1.0, math.nan), (1.0, 0.3))
    pair = tpv.StabilityResult(result(1.0, 0.01), result(2.0, 0.01))
    assert pair.layers["a"].value == pair.ratio == 0.5
    assert "train/test" in str(pair)


def test_stability_pairs_draws() -> None:
    model, perturbation = network(), tpv.Isotropic(0.01)
    pair = tpv.stability(
        model, randn(300, 4), randn(300, 4, seed=1), perturbation, estimator=tpv.LinearizedMonteCarlo(8)
    )
    unpaired = math.hypot(pair.train.stderr, pair.ratio * pair.test.stderr) / pair.test.value
    assert pair.ratio_stderr < 0.5 * unpaired
    assert abs(pair.ratio - 1) < 4 * pair.ratio_stderr


@pytest.mark.parametrize(
    ("v", "stderr", "words"),
    [
        (0.01, 0.001, "first-order approximation holds"),
        (0.2, 0.01, "first-order approximation borderline: use MonteCarlo"),
        (0.36, 0.01, "borderline or invalid"),
        (0.9, 0.01, "first-order approximation invalid"),
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
    assert result.first_order / result.finite == pytest.approx(result.ratio)


def a_pair() -> tpv.StabilityResult:
    def result(value: float) -> tpv.TPVResult:
        layers = {"block.0": tpv.Estimate(value, 0.1, math.nan)}
        metadata = {"seed": 3, "perturbation": "Isotropic(std=1.0)", "versions": {"torch": "2"}, "unit": None}
        return tpv.TPVResult(value, 0.1, math.nan, 100, layers, None, (1.0, 2.0), metadata, 0.5)

    return tpv.StabilityResult(result(2.0), result(4.0))


def test_flat_dictionaries_are_for_loggers() -> None:
    pair = a_pair()
    flat = pair.train.to_dict(flat=True)
    assert math.isnan(flat.pop("tpv/mc_stderr"))
    assert math.isnan(flat.pop("tpv/layers/block.0/mc_stderr"))
    assert flat == {
        "tpv/value": 2.0, "tpv/stderr": 0.1, "tpv/n_examples": 100, "tpv/draw_std": 0.5,
        "tpv/layers/block.0/value": 2.0, "tpv/layers/block.0/stderr": 0.1,
        "tpv/metadata/seed": 3, "tpv/metadata/perturbation": "Isotropic(std=1.0)", "tpv/metadata/versions/torch": "2",
    }  # fmt: skip
    both = pair.to_dict(flat=True)
    assert (both["stability/ratio"], both["stability/train/value"], both["stability/test/layers/block.0/value"]) == (0.5, 2.0, 4.0)  # fmt: skip
    assert both["stability/verdict"] == pair.verdict
    assert not any(key.startswith("stability/cross_fitted") for key in both)
    linearity = tpv.LinearityResult(0.1, 0.01, 0.0, 1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 10)
    assert linearity.to_dict(flat=True)["linearity/value"] == 0.1
    for found in (flat, both, linearity.to_dict(flat=True)):
        assert all(isinstance(key, str) and isinstance(v, int | float | str) for key, v in found.items())


def test_intervals_are_normal() -> None:
    pair = a_pair()
    assert pair.train.interval() == pytest.approx((2.0 - 1.959964 * 0.1, 2.0 + 1.959964 * 0.1))
    assert pair.train.interval(0.6827) == pytest.approx((1.9, 2.1), abs=1e-4)
    ratio = tpv.StabilityResult(tpv.TPVResult(2.0, 0.1, 0.0, 9), tpv.TPVResult(4.0, 0.1, 0.0, 9))
    assert ratio.interval(0.9) == pytest.approx(
        (0.5 - 1.644854 * ratio.ratio_stderr, 0.5 + 1.644854 * ratio.ratio_stderr)
    )
    linearity = tpv.LinearityResult(0.1, 0.01, 0.0, 1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 10)
    assert (
        linearity.interval(0.95)
        == linearity.estimate.interval(0.95)
        == pytest.approx((0.0804, 0.1196), abs=1e-4)
    )
    assert all(map(math.isnan, tpv.Estimate(1.0, math.nan, 0.0).interval()))
    for level in (0, 1, 95, "0.95"):
        with pytest.raises(tpv.TPVError, match=r"level must be a number in \(0, 1\)"):
            pair.interval(level)


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Binomial: |z| < 4 over 400 samples of 50 examples."""
    model, hits = nn.Linear(4, 2).double(), 0
    truth = 0.01 * 2 * (4 + 1)  # σ² K (E‖x‖² + 1)
    for seed in range(400):
        hits += (lambda ends: ends[0] < truth < ends[1])(
            tpv.estimate(model, randn(50, 4, seed=seed), tpv.Isotropic(0.1)).interval(0.9)
        )
    assert abs(hits / 400 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 400)


def test_a_stopped_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "result.json"
    a_pair().to_json(path)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        a_pair().train.to_json(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_version_is_that_of_the_package() -> None:
    assert tpv.__version__ == importlib.metadata.version("tpv")
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        tpv.colour  # noqa: B018
