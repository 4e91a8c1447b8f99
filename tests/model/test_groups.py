"""Selecting parameters and grouping them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import tpv
from tpv.plots.layers import plot_layers

NOISE = tpv.Isotropic(0.3)
X = randn(5, 4)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "stem": nn.Linear(4, 4),
        "block1": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        "block2": nn.Sequential(nn.Linear(4, 3)),
    }
    return nn.Sequential(OrderedDict(layers)).double()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (r"block\d", {"(other)": ["stem"], "block1": ["block1.0", "block1.1"], "block2": ["block2.0"]}),
        (r"(stem|block)", {"stem": ["stem"], "block": ["block1.0", "block1.1", "block2.0"]}),
        (
            {"first": "*stem*", "rest": ["*block1*", "*block2*"]},
            {"first": ["stem"], "rest": ["block1.0", "block1.1", "block2.0"]},
        ),
        ({"first": "*stem*"}, {"first": ["stem"], "(other)": ["block1.0", "block1.1", "block2.0"]}),
        (
            lambda name: name.split(".")[0],
            {"stem": ["stem"], "block1": ["block1.0", "block1.1"], "block2": ["block2.0"]},
        ),
    ],
    ids=["expression", "group", "mapping", "other", "function"],
)
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.Hutchinson(2)])
def test_groups_are_sums_of_modules(layers, expected, estimator) -> None:
    by_module = tpv.estimate(network(), X, NOISE, estimator=estimator).layers
    grouped = tpv.estimate(network(), X, NOISE, estimator=estimator, layers=layers)
    assert set(grouped.layers) == set(expected)
    for name, modules in expected.items():
        assert grouped.layers[name].value == pytest.approx(
            sum(by_module[m].value for m in modules), rel=1e-12
        )
    assert sum(e.value for e in grouped.layers.values()) == pytest.approx(grouped.value, rel=1e-12)
    assert grouped.layers[next(iter(expected))].stderr > 0


def test_stability_and_plots_take_groups() -> None:
    found = tpv.stability(network(), X, randn(4, 4, seed=1), NOISE, layers=r"block\d|stem")
    assert set(found.layers) == {"stem", "block1", "block2"}
    assert [text.get_text() for text in plot_layers(found.train.layers).get_yticklabels()] == [
        "stem",
        "block1",
        "block2",
    ]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("block(", r"layers='block\(' is not a regular expression"),
        ("layer9", r"layers='layer9' matches no parameter: names look like 'stem\.weight'"),
        ({"a": "*stm*"}, r"matches no parameter"),
        (3, "give a regular expression, a mapping"),
    ],
)
def test_groups_that_cannot_be_are_refused(layers, message) -> None:
    with pytest.raises(tpv.TPVError, match=message):
        tpv.estimate(network(), X, NOISE, layers=layers)


def test_a_predicate_selects_parameters() -> None:
    def matrices(name: str, weight: Tensor) -> bool:
        return weight.ndim == 2 and "block" in name

    perturbation = tpv.Isotropic(0.3, params=matrices)
    result = tpv.estimate(network(), X, perturbation)
    assert set(result.layers) == {"block1.0", "block2.0"}
    assert result.value == pytest.approx(
        tpv.estimate(network(), X, tpv.Isotropic(0.3, params="*block*.0.weight")).value, rel=1e-12
    )
    assert result.metadata["perturbation"].startswith("Isotropic(std=0.3, params=")
    assert "matrices" in result.metadata["perturbation"]
    assert "0x" not in result.metadata["perturbation"]
    with pytest.raises(tpv.TPVError, match="selects none of the 8 trainable parameters"):
        tpv.estimate(network(), X, tpv.Isotropic(0.3, params=lambda name, weight: False))
