"""Plots show the numbers that they get."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

import tpv
from tpv.common.stats import Estimate
from tpv.plots.layers import plot_layers
from tpv.plots.train_test import plot_bars, plot_train_test

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def a_result(*values: float, **fields) -> tpv.TPVResult:
    layers = {name: Estimate(v, 0.1, 0.0) for name, v in zip(("z", "a", "$m$"), values, strict=False)}
    reason = None if layers else "each draw moves all layers at once"
    return tpv.TPVResult(sum(values), 0.2, 0.0, 100, layers, reason, **fields)


def test_plot_of_the_spectrum_has_its_three_curves() -> None:
    spectrum = tpv.Spectrum(
        (4.0, 2.0, 0.5, 0.0), (0.25, 0.4, 0.2, 0.1), (0.2, 1.0, 0.8, 0.0), (0.2, 0.2, 0.1, 0.0)
    )
    axes = spectrum.plot()
    parts = next(a for a in axes.figure.axes if a is not axes)
    assert (axes.get_xscale(), axes.get_yscale(), parts.get_yscale()) == ("log", "log", "linear")
    assert list(axes.lines[0].get_ydata()) == [4.0, 2.0, 0.5], "what is 0 has no place on a logarithmic axis"
    assert list(parts.lines[0].get_ydata()) == pytest.approx([1.0, 0.8, 0.1])
    assert list(parts.lines[1].get_ydata()) == pytest.approx([0.1, 0.6, 1.0])
    assert [t.get_text().split()[0] for t in axes.get_legend().get_texts()] == [
        "eigenvalue",
        "share",
        "cumulative",
    ]
    given = plt.figure().add_subplot()
    assert spectrum.plot(ax=given) is given
    with pytest.raises(tpv.TPVError, match="no eigenvalue above 0"):
        tpv.Spectrum((0.0,), (1.0,), (0.0,), (0.0,)).plot()


def test_bars_of_label_noise_stand_in_pairs() -> None:
    names = ("train, in sample", "test", "train, cross-fitted", "test, noise of the same halves")
    axes = plot_bars(
        {name: Estimate(v, 0.1, 0.0) for name, v in zip(names, (2.4, 1.4, 2.56, 2.5), strict=True)}
    )
    assert [bar.get_width() for bar in axes.patches] == [2.4, 1.4, 2.56, 2.5]
    assert tuple(t.get_text().replace("\n", " ") for t in axes.get_yticklabels()) == names
    tops = [bar.get_y() for bar in axes.patches]
    assert tops[2] - tops[1] > tops[1] - tops[0] == tops[3] - tops[2]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


def test_plot_layers_draws_every_layer_in_order() -> None:
    result = a_result(1.0, 2.0, 3.0)
    axes = plot_layers(result.layers)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["z", "a", "$m$"]
    assert [bar.get_width() for bar in axes.patches] == [e.value for e in result.layers.values()]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"
    axes.figure.canvas.draw()
    given = plt.figure().add_subplot()
    assert result.plot(ax=given) is given


def test_plot_layers_without_layers_says_why() -> None:
    with pytest.raises(tpv.TPVError, match="no layers to plot: each draw moves all layers at once"):
        a_result().plot()


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'tpv\[plot\]'"):
        a_result(1.0).plot()


def test_plot_train_test_has_line_band_and_points() -> None:
    pairs = [
        ("a", Estimate(1.0, 0.1, 0.0), Estimate(2.0, math.nan, 0.0)),
        ("b", Estimate(100.0, 1.0, 0.0), Estimate(90.0, 1.0, 0.0)),
    ]
    axes = plot_train_test([*pairs, ("zero", Estimate(0.0, 0.0, 0.0), Estimate(1.0, 0.0, 0.0))])
    line, points = axes.lines[0], axes.lines[1]
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [(1.0, 2.0), (100.0, 90.0)]
    low, high = line.get_xdata()
    corners = axes.collections[0].get_paths()[0].vertices
    assert any((abs(corners - torch.tensor([low, low * 1.5]).numpy()) < 1e-4 * low).all(1))
    assert any((abs(corners - torch.tensor([high, high / 1.5]).numpy()) < 1e-4 * high).all(1))
    with pytest.raises(tpv.TPVError, match="no positive pair"):
        plot_train_test([])


def test_a_stability_result_draws_its_layers() -> None:
    pair = tpv.StabilityResult(a_result(1.0, 2.0, 0.0), a_result(1.5, 2.5, 3.0))
    axes = pair.plot()
    points = axes.lines[1]
    assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [(1.0, 1.5), (2.0, 2.5)]
    given = plt.figure().add_subplot()
    assert pair.plot(ax=given) is given


def test_a_stability_result_without_layers_draws_its_totals() -> None:
    single = tpv.StabilityResult(tpv.TPVResult(2.0, 0.1, 0.0, 9), tpv.TPVResult(3.0, 0.1, 0.0, 9)).plot()
    assert [bar.get_width() for bar in single.patches] == [2.0, 3.0]
    four = tpv.StabilityResult(*[a_result(v) for v in (1.0, 2.0, 3.0, 4.0)]).plot()
    assert [bar.get_width() for bar in four.patches] == [1.0, 2.0, 3.0, 4.0]
