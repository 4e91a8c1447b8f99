"""Text to perturbations and estimators: known classes, literal arguments, one sentence for everything else."""

import sys

import pytest
import torch

import tpv
from tpv.cli.spec import parse_criterion, parse_estimator, parse_perturbation

MINE = """
from dataclasses import dataclass
import tpv

@dataclass(frozen=True, repr=False)
class MyNoise(tpv.DiagonalPerturbation):
    p: float = 0.5

    def __post_init__(self):
        if self.p > 1:
            raise ValueError("p is a probability")

    def variance(self, at):
        return {name: w.square() * self.p for name, w in at.items()}

class Unfinished(tpv.Perturbation):
    pass

other = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_for_spec.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_for_spec", None)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Quantization(bits=4)", tpv.Quantization(bits=4)),
        (" Quantization ( 4 , 'tensor' ) ", tpv.Quantization(4, "tensor")),
        ("Quantization", tpv.Quantization()),
        ("tpv:Isotropic(std=1e-3)", tpv.Isotropic(1e-3)),
        ("tpv.Isotropic(0.5)", tpv.Isotropic(0.5)),
        ("Quantization(params=['a:b + c', '(d'])", tpv.Quantization(params=["a:b + c", "(d"])),
        (
            "Isotropic(0.1) + SGDNoise(lr=0.1, batch_size=8)",
            tpv.Isotropic(0.1) + tpv.SGDNoise(lr=0.1, batch_size=8),
        ),
        (
            "Isotropic(1) + Isotropic(2) + Isotropic(3)",
            tpv.Isotropic(1) + tpv.Isotropic(2) + tpv.Isotropic(3),
        ),
    ],
)
def test_text_gives_what_the_code_gives(text, made):
    assert parse_perturbation(text) == made


def test_a_repr_can_be_read_again():
    for made in (
        tpv.Quantization(bits=4, error="actual"),
        tpv.SGDNoise(lr=0.1, batch_size=8),
        tpv.Isotropic(1.0) + tpv.Isotropic(2.0),
    ):
        assert parse_perturbation(repr(made)) == made


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("GradientDescent(lr=1e-4, steps=50)", tpv.GradientDescent(lr=1e-4, steps=50)),
        ("GradientDescent(None, 50, gamma=0.1)", tpv.GradientDescent(None, 50, gamma=0.1)),
        ("Ridge(gamma=0.01)", tpv.Ridge(0.01)),
        ("tpv.Ridge(0.01)", tpv.Ridge(0.01)),
        ("Interpolation()", tpv.Interpolation()),
        ("Interpolation", tpv.Interpolation()),
    ],
)
@pytest.mark.parametrize("name", ["LabelNoise", "tpv:LabelNoise", "tpv.LabelNoise"])
def test_label_noise_comes_without_data(text, fit, name):
    made = parse_perturbation(f"{name}(std=0.1, fit={text}, relative=True)")
    assert isinstance(made, tpv.LabelNoise)
    assert (made.std, made.fit, made.relative, made.center, made.data) == (0.1, fit, True, True, None)
    assert repr(parse_perturbation(repr(made))) == repr(made)


def test_label_noise_without_data_says_what_is_missing():
    made = parse_perturbation("LabelNoise(std=0.1, fit=Ridge(0.1))")
    for law in (made, made + tpv.Isotropic(0.1)):
        with pytest.raises(
            tpv.TPVError,
            match=r"LabelNoise\(std=0\.1, fit=Ridge\(gamma=0\.1\)\) has no training inputs .*: give data=",
        ):
            tpv.estimate(torch.nn.Linear(3, 2), torch.ones(4, 3), law)


def test_fits_show_the_options_that_matter():
    assert repr(tpv.GradientDescent(lr=None, steps=50)) == "GradientDescent(lr=None, steps=50)"
    assert repr(tpv.GradientDescent(0.1, 5, momentum=0.9)) == "GradientDescent(lr=0.1, steps=5, momentum=0.9)"
    assert repr(tpv.Ridge(gamma=0.1)) == "Ridge(gamma=0.1)"


def test_estimators():
    assert parse_estimator("Hutchinson(probes=4)") == tpv.Hutchinson(probes=4)
    assert parse_estimator("Exact") == tpv.Exact()


def test_a_class_of_ones_own(mine):
    made = parse_perturbation("mine_for_spec:MyNoise(p=0.02)")
    assert repr(made) == "MyNoise(p=0.02)"
    assert isinstance(made, tpv.Perturbation)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Quantisation(bits=4)",
            r"'Quantisation' is not a perturbation of tpv: .*Did you mean 'Quantization'\?",
        ),
        ("Exact()", r"'Exact' is not a perturbation of tpv"),
        (
            "Quantization(bit=4)",
            r"Quantization has no option 'bit': its options are bits, granularity, .*Did you mean 'bits'\?",
        ),
        ("Quantization(bits=0)", r"Quantization\(bits=0\): bits must be an int in \[1, 16\]\."),
        (
            "SGDNoise(lr=0.1)",
            r"SGDNoise: missing a required argument: 'batch_size'; its options are lr, batch_size, momentum, params\.",
        ),
        ("Isotropic(1, 2, 3)", r"Isotropic: too many positional arguments"),
        ("Isotropic(std=1, std=2)", r"write every option out, once"),
        ("Isotropic(**{'std': 1})", r"write every option out, once"),
        ("Isotropic(*[1])", r"only literal values"),
        ("Isotropic(std=float('inf'))", r"only literal values"),
        ("Isotropic(std=x)", r"only literal values"),
        ("Displacement({})", r"Displacement needs state_dict with tensors, which text cannot give"),
        ("tpv:Displacement({})", r"Displacement needs state_dict with tensors, which text cannot give"),
        (
            "Retraining(LabelNoise(0.1, fit=Ridge(1)))",
            r"Retraining needs a LabelNoise with its training data, which text cannot give: use it from",
        ),
        ("tpv:Retraining()", r"Retraining needs a LabelNoise with its training data"),
        (
            "LabelNoise(0.1)",
            r"LabelNoise\(fit=\.\.\.\) is a NoneType: give std, .* tpv\.Interpolation\(\), tpv\.Ridge",
        ),
        (
            "LabelNoise(0.1, data=[1], fit=Ridge(1))",
            r"LabelNoise has no option 'data': its options are std, fit, center, relative, params\.",
        ),
        ("LabelNoise(0.1, Ridge(1))", r"LabelNoise: too many positional arguments"),
        (
            "LabelNoise(0.1, fit=GradientDecent(steps=5))",
            r"only literal values .* Did you mean 'GradientDescent'\?",
        ),
        ("LabelNoise(0.1, fit=Ridge(gamma=0))", r"Ridge\(gamma=0\) is no penalty"),
        (
            "LabelNoise(0.1, fit=Ridge(gama=1))",
            r"Ridge has no option 'gama': its options are gamma\. Did you mean 'gamma'\?",
        ),
        (
            "LabelNoise(0.1, fit=GradientDescent(lr=0.5))",
            r"GradientDescent\(steps=None\): steps must be an int of at least 1",
        ),
        ("LabelNoise(0.1, fit=Ridge(gamma=f()))", r"Ridge\(\.\.\. f\(\) \.\.\.\): only literal values"),
        ("Ridge(gamma=1)", r"'Ridge' is not a perturbation of tpv"),
        ("Isotropic(std=Ridge(1))", r"Isotropic\(std=Ridge\(gamma=1\)\): std must be a number"),
        (
            "Quantization(error='actual') + Isotropic(1.0)",
            r"only independent zero-mean perturbations can be added",
        ),
        ("Isotropic(1) - Isotropic(1)", r"cannot be read"),
        ("Quantization(bits=4", r"cannot be read"),
        ("Isotropic(1)(2)", r"cannot be read"),
        ("4", r"cannot be read"),
        ("", r"cannot be read"),
        ("a b", r"cannot be read"),
        ("no_such_module_anywhere:X()", r"no_such_module_anywhere:X cannot be imported: ModuleNotFoundError"),
        ("tpv:Quantisation()", r"tpv defines no 'Quantisation'\. Did you mean 'Quantization'\?"),
        ("tpv:Exact()", r"tpv:Exact is not a perturbation: subclass tpv\.Perturbation"),
        ("mine_for_spec:other", r"mine_for_spec:other is not a perturbation"),
        ("mine_for_spec:Unfinished()", r"mine_for_spec:Unfinished is not a perturbation"),
        ("mine_for_spec:MyNoise(p=2)", r"MyNoise\(p=2\) was refused: ValueError: p is a probability\."),
        ("mine_for_spec:MyNoise(q=2)", r"MyNoise has no option 'q': its options are p\."),
    ],
)
def test_everything_else_is_one_sentence(mine, text, sentence):
    with pytest.raises(tpv.TPVError, match=sentence) as caught:
        parse_perturbation(text)
    assert "\n" not in str(caught.value)


def test_nothing_is_evaluated(tmp_path):
    for text in (
        f"Quantization(bits=open({str(tmp_path / 'x')!r}, 'w'))",
        "Isotropic(std=__import__('os').getpid())",
        "exec('1')",
    ):
        with pytest.raises(tpv.TPVError):
            parse_perturbation(text)
    assert not (tmp_path / "x").exists()


def test_an_unknown_estimator_names_the_known_ones():
    with pytest.raises(
        tpv.TPVError,
        match=r"'Exac' is not an estimator of tpv: there are Auto, Exact, HutchPlusPlus, .*Did you mean 'Exact'\?",
    ):
        parse_estimator("Exac")
    with pytest.raises(tpv.TPVError, match=r"Hutchinson\(probes=0\): probes must be an int"):
        parse_estimator("Hutchinson(probes=0)")


@pytest.mark.parametrize(
    ("parse", "example"),
    [
        (parse_perturbation, r"Quantization\(bits=4\)"),
        (parse_estimator, r"Hutchinson\(probes=4\)"),
        (parse_criterion, r"TPVImportance\(probes=4\)"),
    ],
)
@pytest.mark.parametrize("text", ["3", "a b"])
def test_the_example_is_of_the_kind_that_was_asked_for(parse, example, text):
    with pytest.raises(tpv.TPVError, match=rf"such as '{example}'\.$"):
        parse(text)
