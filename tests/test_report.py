"""What a report shows: JSON, page, tables and plots, from results alone."""

import io
import math
import re
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from rich.console import Console

import tpv
from tpv._stats import Estimate
from tpv.report import Entry, Report
from tpv.report.html import number, page
from tpv.report.plots import plot_layers, plot_train_test
from tpv.report.terminal import console, progress_bars, show
from tpv.report.view import View

matplotlib.use("Agg")
HOSTILE = "<script>alert('&')</script>"


def a_result(value=4.0, layers=("a", "b"), **metadata):
    facts = {"parameters": 1234, "outputs": 3, "dtype": "float32", "device": "cpu", "seconds": 0.5, "estimator": "Exact()"}
    parts = {name: Estimate(value / len(layers), 0.1, 0.0) for name in layers}
    reason = None if layers else "each draw moves all layers at once"
    return tpv.TPVResult(value, 0.2, 0.0, 100, parts, reason, (), metadata=facts | {"versions": {"tpv": "0"}} | metadata)


def a_linearity(v=0.01):
    return tpv.LinearityResult(v, 0.001, 0.001, 4.0, 0.1, 4.1, 0.1, 0.98, 0.01, 100, {"estimator": "linearity(draws=8)", "seconds": 0.1})


def an_entry(name="Quantization(bits=4)", paired=True, layers=("a", "b"), v=0.01, **metadata):
    train, test = a_result(4.0, layers, **metadata), a_result(3.9, layers, **metadata)
    return Entry(name, tpv.StabilityResult(train, test) if paired else train, a_linearity(v))


def a_report(title="net", **options):
    headline = an_entry("Isotropic(std=1.0)", **options)
    settings = {"limit": 100, "estimator": "default", "seed": 0, "linearity_examples": 256, "linearity_draws": 8}
    return Report(title, Entry(headline.perturbation, headline.result), (an_entry(**options), an_entry("SGD", **options)), settings)


class Page(HTMLParser):
    """Checks nesting, collects tags with their attributes and the text."""

    VOID = ("meta", "br", "wbr", "path", "use", "rect", "line")

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("paired", [True, False])
def test_json_round_trip(tmp_path, paired):
    report = a_report(paired=paired)
    assert Report.from_json(report.to_json(tmp_path / "r.json")) == report
    assert Report.from_json(tmp_path / "r.json") == report


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("{}", "not a saved report"),
        ('{"format": "tpv-report", "version": 99}', "has version 99, and this tpv reads version 1"),
    ],
)
def test_other_json_is_refused(text, sentence):
    with pytest.raises(tpv.TPVError, match=sentence):
        Report.from_json(text)


@pytest.mark.parametrize("options", [{}, {"paired": False}, {"layers": ()}, {"layers": ("层", "b")}], ids=str)
def test_page_is_self_contained_and_well_formed(options):
    source = page(a_report(**options))
    found = Page(source)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "img", "object")
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "action"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            if name.endswith("href"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)", source)
    assert "@import" not in source
    assert "://" not in source
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_page_says_what_the_results_say():
    report = a_report(v=0.5)
    text = " ".join(Page(page(report)).text.split())
    both = report.entries[0].stability
    for part in (
        "3.9 ± 0.2",
        "4.0 ± 0.2",
        both.verdict,
        "first order fails: use MonteCarlo",
        "0.5000 ± 0.0010",
        "50.0 %",
        "1,234 parameters",
        "Exact()",
    ):
        assert part in text, part
    assert "unused" not in text


def test_page_is_accessible():
    tags = Page(page(a_report())).tags
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 3
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in drawings)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert ("html", {"lang": "en"}) in tags


def test_page_without_test_data_or_layers_says_so():
    text = Page(page(a_report(paired=False, layers=()))).text
    assert "defines no test_data" in text
    assert "no split by layer: each draw moves all layers at once" in text
    assert "Train against test" not in text


def test_page_names_slow_and_unused_parameters():
    text = Page(page(a_report(slow_routes={"odd.weight": "no reducer"}, unused_parameters=["idle"]))).text
    assert "odd.weight: no reducer" in text
    assert "without effect on the outputs (1)" in text


def test_text_is_escaped_everywhere():
    report = a_report(title=HOSTILE, layers=(HOSTILE, "$x_$"), unused_parameters=[HOSTILE])
    entry = Entry(HOSTILE, report.headline.result, a_linearity())
    found = Page(page(Report(HOSTILE, report.headline, (entry,), report.settings)))
    assert not any(tag == "script" for tag, _ in found.tags)
    assert found.text.count(HOSTILE) >= 5
    assert "$x_$" in found.text


def test_numbers_as_powers_of_ten():
    assert number("(1.2 ± 0.1)e-15") == "(1.2 ± 0.1) × 10⁻¹⁵"
    assert number("1.2 ± 0.1") == "1.2 ± 0.1"


@pytest.mark.parametrize("options", [{}, {"paired": False}, {"layers": ()}, {"layers": tuple(f"layer{i}" + "x" * 90 for i in range(12))}])
def test_tables_fit_80_columns(monkeypatch, capsys, options):
    monkeypatch.setenv("COLUMNS", "200")
    report = a_report(slow_routes={f"layer{i}.weight": "no reducer" for i in range(30)}, **options)
    long = an_entry("MyNoise([red], " + "layer*" * 30 + ")", **options)
    show(Report("net" * 40, report.headline, (*report.entries, long), report.settings), console())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "4.0 ± 0.2" in out
    assert "MyNoise([red], " in out, "brackets are not markup"


def test_terminal_names_each_verdict():
    far = Entry("Far", tpv.StabilityResult(a_result(40.0), a_result(4.0)), a_linearity(0.2))
    report = a_report()
    to = Console(file=io.StringIO(), width=200)
    show(Report("net", report.headline, (far,), report.settings), to)
    out = to.file.getvalue()
    assert f"Far: {far.stability.verdict}" in out
    assert f"Isotropic(std=1.0): {report.headline.stability.verdict}" in out
    assert far.linearity.verdict in out


def test_every_perturbation_tells_its_layers(capsys):
    split, fixed = an_entry("Quantization(bits=4)", layers=("p", "q")), an_entry("Fixed()", layers=())
    report = Report("net", split, (split, fixed), a_report().settings)
    show(report, console())
    assert "Quantization(bits=4)  p 50.0 %, q 50.0 %" in capsys.readouterr().out
    html = page(report)
    assert html.count("<summary>Layers under") == 1
    assert "Layers under <code>Quantization(<wbr>bits=4)</code>" in html


def test_progress_only_on_a_terminal():
    for terminal in (True, False):
        to = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        with progress_bars(to) as tell:
            for done in (0, 10, 20):
                tell("Quantization(bits=4, granularity='group', group_size=32)", "linearity", done, 20 if done else None)
        out = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", to.file.getvalue())
        assert ("20/20" in out) if terminal else (out == "")
        assert max(map(len, re.split("[\r\n]", out))) <= 80


def test_plot_layers_draws_every_layer_in_order():
    result = a_result(layers=("z", "a", "$m$"))
    axes = plot_layers(result)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["z", "a", "$m$"]
    assert [bar.get_width() for bar in axes.patches] == [e.value for e in result.layers.values()]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"
    axes.figure.canvas.draw()
    given = plt.figure().add_subplot()
    assert result.plot(ax=given) is given
    plt.close("all")


def test_plot_layers_without_layers_says_why():
    with pytest.raises(tpv.TPVError, match="no layers to plot: each draw moves all layers at once"):
        plot_layers(a_result(layers=()))


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'tpv\[plot\]'"):
        a_result().plot()


def test_plot_train_test_has_line_band_and_points():
    pairs = [("a", Estimate(1.0, 0.1, 0.0), Estimate(2.0, math.nan, 0.0)), ("b", Estimate(100.0, 1.0, 0.0), Estimate(90.0, 1.0, 0.0))]
    axes = plot_train_test([*pairs, ("zero", Estimate(0.0, 0.0, 0.0), Estimate(1.0, 0.0, 0.0))])
    line, points = axes.lines[0], axes.lines[1]
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [(1.0, 2.0), (100.0, 90.0)]
    low, high = line.get_xdata()
    corners = axes.collections[0].get_paths()[0].vertices
    assert any((abs(corners - torch.tensor([low, low * 1.5]).numpy()) < 1e-4 * low).all(1))
    assert any((abs(corners - torch.tensor([high, high / 1.5]).numpy()) < 1e-4 * high).all(1))
    plt.close("all")
    with pytest.raises(tpv.TPVError, match="no positive pair"):
        plot_train_test([])


def loader(n):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(n), torch.zeros(n)), batch_size=4)


@pytest.mark.parametrize(
    "data", [torch.arange(10), [torch.arange(4), torch.arange(4, 10)], [(torch.arange(10), "label")], loader(10)], ids=repr
)
@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (4, 4), (1, 1), (100, 10), (None, 10)])
def test_view_gives_the_first_examples_again_and_again(data, limit, expected):
    view = View(data, limit, torch.device("cpu"))
    for _ in range(2):
        inputs = [batch if isinstance(batch, torch.Tensor) else batch[0] for batch in view]
        assert torch.equal(torch.cat(inputs), torch.arange(expected))
    assert len(view.dataset) == expected


def test_view_of_unknown_length():
    class Stream:
        def __iter__(self):
            yield from ({"x": torch.arange(3)} for _ in range(3))

    view = View(Stream(), 5, None)
    assert view.dataset is None
    assert [len(batch["x"]) for batch in view] == [3, 2]
    with pytest.raises(tpv.TPVError, match="one-shot"):
        View(iter([torch.ones(3)]), 5, None)
