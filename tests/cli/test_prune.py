"""``tpv prune``: files, tables, exit codes."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from commands import working_folder
from prunings import prune
from typer.testing import CliRunner

import tpv.pruning
from tpv import TPVError, demo
from tpv.cli.app import app
from tpv.cli.spec import parse_criterion
from tpv.pruning import JBR, PruningStep, TPVImportance

TARGET = """
import torch

generator = torch.Generator().manual_seed(0)
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()

inputs, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
train_data = inputs[:40]
test_data = [(inputs[40:], labels[40:])]
"""
QUICK = ("--target", "params=0.5", "--steps", 2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    yield from working_folder(tmp_path, monkeypatch, TARGET)


def run(*arguments):
    return CliRunner().invoke(app, ["prune", *map(str, arguments)])


def refused(*arguments, code=2):
    """The sentence on stderr of a run that must fail."""
    found = run(*arguments)
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1, found.stderr
    return lines[0]


def target():
    space = {}
    exec(TARGET, space)
    return space


def log(out="tpv-pruned"):
    found = json.loads(Path(out, "log.json").read_text())
    return [PruningStep.from_dict(step) for step in found["steps"]], found["metadata"]


def test_files_and_tables():
    found = run("target.py", *QUICK)
    assert found.exit_code == 0, found.output
    assert {p.name for p in Path("tpv-pruned").iterdir()} == {
        "model.safetensors",
        "pruning.json",
        "log.json",
        "pruning.svg",
    }
    steps, metadata = log()
    assert len(steps) == 2
    assert steps[-1].params_share <= 0.5
    assert (metadata["examples"], metadata["test_examples"]) == (40, 20)
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2:] == [
        "tpv.pruning.load(model, 'tpv-pruned') reads the pruned network:",
        "tpv-pruned/model.safetensors",
    ]
    assert re.search(r"^2 .* %$", found.stdout, re.MULTILINE)
    assert Path("tpv-pruned/pruning.svg").read_text().startswith("<?xml")
    assert found.stderr == ""


OPTIONS = {
    "criterion": (["--criterion", "JBR(confidence=0.1)"], {"criterion": JBR(0.1)}),
    "short": (["--criterion", "l1"], {"criterion": tp.importance.MagnitudeImportance(p=1)}),
    "seeds": (
        ["--seed", 3, "--criterion", "random"],
        {"generator": 3, "criterion": tp.importance.RandomImportance()},
    ),
    "uniform": (["--allocation", "uniform"], {"allocation": "uniform"}),
    "curves": (["--allocation", "curves"], {"allocation": "curves"}),
    "compensate": (["--compensate"], {"compensate": True}),
    "ignored": (["--ignore", "2*", "--ignore", "[0]", "--target", "params=0.99"], None),
    "ignore": (["--ignore", "2*"], {"ignore": ("2*",)}),
    "limit": (["--limit", 10], {"data": target()["train_data"][:10]}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_numbers_are_those_of_the_library(name):
    arguments, options = OPTIONS[name]
    if options is None:
        assert "no channel of the model can be removed (" in refused("target.py", *QUICK, *arguments)
        return
    found = run("target.py", *QUICK, *arguments, "--out", "a folder #1")
    assert found.exit_code == 0, found.output
    space = target()
    asked = {"data": space["train_data"], "test": space["test_data"], "steps": 2} | options
    expected = prune(space["model"](), target="params=0.5", **asked)
    steps, metadata = log("a folder #1")
    assert metadata == json.loads(expected.to_json())["metadata"]
    assert [(step.removed, step.output_change, step.output_change_test, step.accuracy) for step in steps] == [
        (step.removed, step.output_change, step.output_change_test, step.accuracy) for step in expected.steps
    ]
    loaded = tpv.pruning.load(space["model"](), "a folder #1")
    assert torch.equal(loaded(space["inputs"]), expected.model(space["inputs"]))


def test_recalibrating_reaches_the_library():
    text = TARGET.replace("torch.nn.Linear(4, 8), ", "torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), ")
    Path("normed.py").write_text(text)
    run("normed.py", *QUICK, "--recalibrate")
    steps, metadata = log()
    assert metadata["recalibrate"] is True
    assert steps[0].output_change_before_repair != steps[0].output_change


def test_json_alone_on_stdout():
    Path("target.py").write_text(TARGET + "\nprint('loading')\n")
    found = run("target.py", *QUICK, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == json.loads(Path("tpv-pruned/log.json").read_text())
    assert "loading" in found.stderr


def test_unlabelled_test_data_and_none():
    Path("unlabelled.py").write_text(
        TARGET.replace("test_data = [(inputs[40:], labels[40:])]", "test_data = inputs[40:]")
    )
    found = run("unlabelled.py", *QUICK)
    assert found.exit_code == 0, found.output
    assert "on test" in found.stdout
    assert "accuracy" not in found.stdout
    Path("none.py").write_text(TARGET.replace("test_data =", "other ="))
    found = run("none.py", *QUICK)
    assert found.exit_code == 0, found.output
    assert "on test" not in found.stdout


def test_labels_of_the_training_data_serve_jc():
    assert "JC needs integer labels" in refused("target.py", *QUICK, "--criterion", "jc")
    Path("labelled.py").write_text(
        TARGET.replace("train_data = inputs[:40]", "train_data = [(inputs[:40], labels[:40])]")
    )
    found = run("labelled.py", *QUICK, "--criterion", "jc")
    assert found.exit_code == 0, found.output


def test_a_forward_of_the_targets_own(folder):
    changed = TARGET.replace("train_data = inputs[:40]", "train_data = [{'odd': inputs[:40]}]").replace(
        "test_data = [(inputs[40:], labels[40:])]", "def forward(model, batch): return model(batch['odd'])"
    )
    Path("odd.py").write_text(changed)
    found = run("odd.py", *QUICK)
    assert found.exit_code == 0, found.output
    assert isinstance(tpv.pruning.load(target()["model"](), "tpv-pruned"), torch.nn.Module)


BAD = {
    r"--criterion 'randm': there are tpv, jbr, jc, random, l1, l2, and classes .* Did you mean 'random'\?$": [
        "--criterion",
        "randm",
    ],
    r"'TPVImportanc' is not a criterion of tpv: there are JBR, JC, TPVImportance, and your own .*Did you mean": [
        "--criterion",
        "TPVImportanc(probes=2)",
    ],
    r"probes must be an int": ["--criterion", "TPVImportance(probes=0)"],
    r"'f\(' cannot be read: .* such as 'TPVImportance\(probes=4\)'\.$": ["--criterion", "f("],
    r"os:getcwd is not a criterion: subclass tpv\.pruning\.Criterion and": ["--criterion", "os:getcwd()"],
    r"target 'macs' cannot be read: write the share to keep": ["--target", "macs"],
    r"Target\(unit='flops'\)": ["--target", "flops=0.5"],
    r"the target cannot be met: ": ["--target", "params=0.01"],
    r"ignore='nope' matches no group of channels: there are ": ["--ignore", "nope"],
    r"--device nowhere: ": ["--device", "nowhere"],
    r"cannot write to target\.py/x.* \(Not a directory\): choose another folder\.": ["--out", "target.py/x"],
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_options(sentence):
    assert re.search(sentence, refused("target.py", *BAD[sentence]))


def test_options_that_the_parser_refuses():
    for arguments in (
        [],
        ["target.py", "--steps", "0"],
        ["target.py", "--allocation", "none"],
        ["target.py", "--limit", "0"],
    ):
        found = run(*arguments)
        assert found.exit_code == 2
        assert "Traceback" not in found.output


def test_an_error_in_the_model_names_debug():
    Path("t.py").write_text(TARGET.replace("test_data = ", "test_data = torch.randn(9, 5) #"))
    sentence = refused("t.py", code=1)
    assert sentence.startswith("tpv: the model or its data raised RuntimeError: mat1 and mat2 shapes")
    assert sentence.endswith("--debug shows the traceback.")
    assert isinstance(run("t.py", "--debug").exception, RuntimeError)


def test_criteria_as_text():
    assert parse_criterion("TPVImportance(probes=4)") == TPVImportance(probes=4)
    assert parse_criterion("tpv.pruning:JBR") == JBR()
    with pytest.raises(TPVError, match="only literal values"):
        parse_criterion("TPVImportance(probes=print(1))")


def test_the_same_folder_again_and_a_folder_of_others():
    assert run("target.py", *QUICK).exit_code == 0
    assert run("target.py", *QUICK, "--seed", 1).exit_code == 0
    Path("tpv-pruned/pruning.svg").write_text("mine")
    sentence = "tpv-pruned has pruning.svg that tpv did not write: "
    assert refused("target.py", *QUICK).startswith(f"tpv: {sentence}")
    assert Path("tpv-pruned/pruning.svg").read_text() == "mine"
    assert run("target.py", *QUICK, "--overwrite").exit_code == 0
    assert Path("tpv-pruned/pruning.svg").read_text() != "mine"


def test_prune_the_demo(monkeypatch):
    images, labels = demo._digits()
    monkeypatch.setattr(demo, "_digits", lambda: (images[:260], labels[:260]))
    monkeypatch.setattr(demo, "_TRAIN", 200)
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    found = run("tpv.demo", "--steps", 2, "--compensate", "--limit", 64)
    assert found.exit_code == 0, found.output
    steps, metadata = log()
    assert (metadata["examples"], metadata["test_examples"]) == (64, 60)
    assert steps[-1].macs_share <= 0.5
    assert steps[-1].accuracy is not None
    assert max(map(len, found.stdout.splitlines())) <= 80
