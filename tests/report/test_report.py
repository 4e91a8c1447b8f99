"""What a report shows: JSON, page, tables and plots, from results alone."""

import dataclasses
import io
import re
import warnings
from html.parser import HTMLParser

import matplotlib
import pytest
import torch
from rich.console import Console

import tpv
from tpv.cli.console import console
from tpv.common.stats import Estimate
from tpv.report import Entry, Report
from tpv.report.html import number, page
from tpv.report.noise import noise_unit, too_expensive
from tpv.report.notes import noted
from tpv.report.terminal import show
from tpv.report.view import View

matplotlib.use("Agg")
HOSTILE = "<script>alert('&')</script>"


def a_result(value=4.0, layers=("a", "b"), **metadata):
    facts = {
        "parameters": 1234,
        "outputs": 3,
        "dtype": "float32",
        "device": "cpu",
        "seconds": 0.5,
        "estimator": "Exact()",
    }
    parts = {name: Estimate(value / len(layers), 0.1, 0.0) for name in layers}
    reason = None if layers else "each draw moves all layers at once"
    return tpv.TPVResult(
        value, 0.2, 0.0, 100, parts, reason, metadata=facts | {"versions": {"tpv": "0"}} | metadata
    )


def a_linearity(v=0.01):
    return tpv.LinearityResult(
        v,
        0.001,
        0.001,
        4.0,
        0.1,
        4.1,
        0.1,
        0.98,
        0.01,
        100,
        {"estimator": "linearity(draws=8)", "seconds": 0.1, "finite_by": "MonteCarlo"},
    )


def an_entry(name="Quantization(bits=4)", paired=True, layers=("a", "b"), v=0.01, **metadata):
    train, test = a_result(4.0, layers, **metadata), a_result(3.9, layers, **metadata)
    return Entry(name, tpv.StabilityResult(train, test) if paired else train, a_linearity(v))


def a_report(title="net", **options):
    headline = an_entry("Isotropic(std=1.0)", **options)
    settings = {
        "limit": 100,
        "estimator": "default",
        "seed": 0,
        "linearity_examples": 256,
        "linearity_draws": 8,
    }
    return Report(
        title,
        Entry(headline.perturbation, headline.result),
        (an_entry(**options), an_entry("SGD", **options)),
        settings,
    )


def a_noise(paired=True, spectrum=True, output="centered logits", **metadata):
    facts = {
        "train_examples": 128,
        "train_outputs": 1280,
        "noise_dimensions": 1152,
        "noise_std": 0.5,
        "fit": "GradientDescent(lr=0.000367481661, steps=50)",
    }
    found = tpv.Spectrum(
        (4.0, 2.0, 0.5, 0.0), (0.25, 0.4, 0.2, 0.1), (0.2, 1.0, 0.8, 0.0), (0.2, 0.2, 0.1, 0.0)
    )
    sides = [a_result(v, (), output=output, unit="", **facts, **metadata) for v in (2.4, 1.4, 2.56, 2.5)]
    sides[:2] = [
        dataclasses.replace(side, draw_std=0.25, spectrum=found if spectrum else None) for side in sides[:2]
    ]
    name = "LabelNoise(std=0.1, fit=GradientDescent(lr=None, steps=50), relative=True)"
    return Entry(
        name, tpv.StabilityResult(*sides) if paired else sides[0], a_linearity(), ("rounding decides it",)
    )


def with_noise(*entries, report=None, **settings):
    report = report or a_report()
    return dataclasses.replace(
        report, entries=(*report.entries, *entries), settings=report.settings | settings
    )


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


@pytest.mark.parametrize("paired", [True, False])
def test_label_noise_in_the_json(tmp_path, paired):
    report = with_noise(a_noise(paired), label_noise_examples=64, label_noise_left_out=None)
    again = Report.from_json(report.to_json(tmp_path / "r.json"))
    assert again.to_json() == report.to_json()
    (entry,) = again.noise
    assert entry.notes == ("rounding decides it",)
    assert entry.shown.spectrum == report.noise[0].shown.spectrum
    assert [e.perturbation for e in again.plain] == [e.perturbation for e in a_report().entries]


def test_entries_of_before_had_no_notes():
    found = a_noise().to_dict()
    del found["notes"]
    assert Entry.from_dict(found).notes == ()


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
        "first-order approximation invalid: use MonteCarlo",
        "0.5000 ± 0.0010",
        "50.0 %",
        "1,234 parameters",
        "Exact()",
    ):
        assert part in text, part
    assert "unused" not in text


def test_page_shows_label_noise():
    source = page(with_noise(a_noise()))
    text = "".join(Page(source).text.split())
    for part in (
        "evaluated on TPV one draw examples",
        "train, in sample 2.4 ± 0.2 ± 0.25 100",
        "test 1.4 ± 0.2 ± 0.25 100",
        "train, cross-fitted 2.6 ± 0.2 – 100",
        "test, noise of the same halves 2.5 ± 0.2 – 100",
        "train / test, cross-fitted 1.02 ± 0.11",
        "train / test, in sample 1.7 ± 0.3",
        "degrees of freedom, Σ kφ 1.9",
        "leverage, the share of its noise that the fit reproduces 0.2 %",
        "Cross-fitted: train TPV is a good proxy for test TPV: within a factor of 1.5.",
        "standard deviation 0.5 on 1,280 outputs of the first 128 training inputs",
        "the fit is GradientDescent(lr=0.0003675, steps=50).",
        "squared units of the centered logits",
        "rounding decides it",
        "4 directions, 1.9 degrees of freedom; the 2 largest eigenvalues carry half of the value.",
    ):
        assert "".join(part.split()) in text, part
    drawings = [a["aria-label"] for tag, a in Page(source).tags if tag == "svg"]
    assert [d.split()[0] for d in drawings] == ["Train", "Train", "Bars", "Curves", "Bars"]
    assert "3 perturbations around the line" in drawings[0], "the headline and two others"
    assert "var(--warm)" in source
    assert "--warm: #" in source


def test_label_noise_is_not_among_the_other_perturbations():
    both, alone = (Page(page(r)).text for r in (with_noise(a_noise()), a_report()))
    main = both[both.index("How much each perturbation") : both.index("Train against test")]
    assert "LabelNoise" not in main
    assert "Label noise" not in alone
    only = dataclasses.replace(a_report(), entries=(a_noise(),))
    assert "How much each perturbation" not in Page(page(only)).text


def test_label_noise_without_test_inputs_or_spectrum():
    text = Page(page(with_noise(a_noise(paired=False), report=a_report(paired=False)))).text
    assert "in sample only" in text
    assert "Cross-fitted" not in text
    drawn = page(with_noise(a_noise(spectrum=False)))
    assert "degrees of freedom" not in drawn
    assert "How to read the curves" not in drawn
    assert drawn.count("<svg") == 4


def test_label_noise_in_nats_says_so():
    entry = a_noise(output="kl")
    result = dataclasses.replace(entry.shown, metadata=entry.shown.metadata | {"unit": "nats"})
    assert noise_unit(result) == "nats"
    assert (
        noise_unit(dataclasses.replace(result, metadata=result.metadata | {"output": "logits", "unit": ""}))
        == "squared units of the outputs"
    )


def test_label_noise_that_is_left_out_says_why(capsys):
    report = with_noise(label_noise_left_out="the kernel takes 199 GiB. Ask for it by -p ….")
    assert "It is left out here: the kernel takes 199 GiB. Ask for it by -p …." in Page(page(report)).text
    show(report, console())
    assert "It is left out here: the kernel takes 199 GiB." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outputs", "parameters", "examples", "sentence"),
    [
        (10, 270_000, 128, None),
        (52, 200_000, 128, None),
        (
            53,
            200_000,
            128,
            r"the kernel of 128 training examples × 53 outputs takes 2\.0 GiB, more than is written out\. Ask for it by -p \"LabelNoise\(.*label-noise-examples 126\.$",
        ),
        (50257, 1000, 128, r"× 50,257 outputs takes 1,387,\d+\.\d GiB, more .* draws of the noise\.$"),
        (
            10,
            11_000_000,
            128,
            r"are 14\.1 billion numbers.*Ask for it by -p \"LabelNoise\(.*--label-noise-examples 19\.$",
        ),
        (10, 1000, 1, r"two halves of the training examples"),
    ],
)
def test_when_label_noise_is_too_expensive_for_every_report(outputs, parameters, examples, sentence):
    found = too_expensive({"outputs": outputs, "parameters": parameters, "dtype": "float32"}, examples)
    assert found is None if sentence is None else re.search(sentence, found), found


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
    slow = {"odd.weight": "no reducer", "b": "cannot be traced", "odd.bias": "no reducer"}
    text = Page(page(a_report(slow_routes=slow, unused_parameters=["idle"]))).text
    assert "no reducer: odd.weight, odd.bias" in text
    assert "cannot be traced: b" in text
    assert "by per-example gradients (3)" in text
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


@pytest.mark.parametrize(
    "options",
    [{}, {"paired": False}, {"layers": ()}, {"layers": tuple(f"layer{i}" + "x" * 90 for i in range(12))}],
)
def test_tables_fit_80_columns(monkeypatch, capsys, options):
    monkeypatch.setenv("COLUMNS", "200")
    report = a_report(slow_routes={f"layer{i}.weight": "no reducer" for i in range(30)}, **options)
    long = an_entry("MyNoise([red], " + "layer*" * 30 + ")", **options)
    show(Report("net" * 40, report.headline, (*report.entries, long), report.settings), console())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("no reducer") == 1
    assert out.count("layer7.weight") == 1
    assert "4.0 ± 0.2" in out
    assert "MyNoise([red], " in out, "brackets are not markup"


def test_terminal_shows_label_noise_in_80_columns(capsys):
    long = dataclasses.replace(a_noise(), perturbation="LabelNoise(" + "x" * 200 + ")")
    show(with_noise(a_noise(), long, a_noise(paired=False)), console())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    lines = [re.sub(r"\s+", " ", line).strip() for line in out.splitlines()]
    for line in (
        "train, in sample 2.4 ± 0.2 ± 0.25 100",
        "test, noise of the same halves 2.5 ± 0.2 100",
        "train/test, cross-fitted 1.02 ± 0.11",
        "train/test, in sample 1.7 ± 0.3",
        "Cross-fitted: train TPV is a good proxy for test TPV: within a factor of 1.5.",
        "1.9 degrees of freedom: the fit reproduces 0.2 % of its own noise (leverage)",
    ):
        assert line in lines, line
    assert "rounding decides it" in out


def test_terminal_names_each_verdict():
    far = Entry("Far", tpv.StabilityResult(a_result(40.0), a_result(4.0)), a_linearity(0.2))
    report = a_report()
    to = Console(file=io.StringIO(), width=200)
    show(Report("net", report.headline, (far,), report.settings), to)
    out = to.file.getvalue()
    assert f"Far: {far.stability.verdict}" in out
    assert f"Isotropic(std=1.0): {report.headline.stability.verdict}" in out
    assert "borderline: use MonteCarlo" in out


def test_every_perturbation_tells_its_layers(capsys):
    split, fixed = an_entry("Quantization(bits=4)", layers=("p", "q")), an_entry("Fixed()", layers=())
    report = Report("net", split, (split, fixed), a_report().settings)
    show(report, console())
    assert "Quantization(bits=4)  p 50.0 %, q 50.0 %" in capsys.readouterr().out
    html = page(report)
    assert html.count("<summary>Layers under") == 1
    assert "Layers under <code>Quantization(<wbr>bits=4)</code>" in html


def test_notes_are_what_tpv_warns_of():
    x = torch.ones(4, 3)
    law = tpv.LabelNoise(0.1, x, tpv.GradientDescent(None, 5))
    with noted() as notes:
        tpv.estimate(torch.nn.Linear(3, 2), x, law)
        with pytest.raises(UserWarning, match="elsewhere"):
            warnings.warn("elsewhere", stacklevel=1)
    assert len(notes) == 1
    assert "3 of the 4 training examples are copies of others" in notes[0]
    with pytest.warns(UserWarning, match="copies of others"):
        tpv.estimate(torch.nn.Linear(3, 2), x, law)


def loader(n):
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(n), torch.zeros(n)), batch_size=4
    )


@pytest.mark.parametrize(
    "data",
    [torch.arange(10), [torch.arange(4), torch.arange(4, 10)], [(torch.arange(10), "label")], loader(10)],
    ids=repr,
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
