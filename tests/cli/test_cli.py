"""The command line: files, exit codes, one sentence for bad input, nothing lost."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from commands import working_folder
from typer.testing import CliRunner

import tpv
from tpv import __main__, demo
from tpv.cli.app import app
from tpv.cli.spec import parse_perturbation
from tpv.cli.target import load_target
from tpv.common.resume import ResumableStore
from tpv.report import Report, measuring

TARGET = """
import torch

generator = torch.Generator().manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
train_data = torch.randn(40, 4, generator=generator)

def test_data():
    return [torch.randn(15, 4, generator=generator) for _ in range(2)]
"""
QUICK = ("-p", "Quantization(bits=4)", "-p", "SGDNoise(lr=0.01, batch_size=8)")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    yield from working_folder(tmp_path, monkeypatch, TARGET)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def refused(*arguments, code=2):
    """The sentence on stderr of a run that must fail."""
    found = run(*arguments)
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_report_writes_both_files_and_prints_tables():
    found = run("report", "target.py", *QUICK)
    assert found.exit_code == 0, found.output
    report = Report.from_json(Path("tpv-report/report.json"))
    assert [entry.perturbation for entry in report.entries] == [
        "Quantization(bits=4)",
        "SGDNoise(lr=0.01, batch_size=8)",
    ]
    assert (report.headline.train.n_examples, report.headline.shown.n_examples) == (40, 30)
    assert report.headline.linearity is None
    assert {p.name for p in Path("tpv-report").iterdir()} == {"report.html", "report.json"}
    assert "Quantization(bits=4)" in Path("tpv-report/report.html").read_text()
    assert max(map(len, found.stdout.splitlines())) <= 80
    assert "tpv-report/report.html" in found.stdout.splitlines()[-1]


def test_numbers_are_those_of_the_library():
    run(
        "report",
        "target.py",
        "-p",
        "Quantization(bits=4)",
        "--seed",
        3,
        "--limit",
        20,
        "--estimator",
        "Hutchinson(probes=2)",
    )
    entry = Report.from_json(Path("tpv-report/report.json")).entries[0]
    torch.manual_seed(3)
    space = {}
    exec(TARGET, space)
    test = torch.cat(space["test_data"]())
    expected = tpv.stability(
        space["model"],
        space["train_data"][:20],
        [test[:15], test[15:20]],
        tpv.Quantization(bits=4),
        estimator=tpv.Hutchinson(2),
        generator=3,
    )
    assert (entry.train.value, entry.shown.value) == (expected.train.value, expected.test.value)
    assert entry.shown.n_examples == entry.linearity.n_examples == 20
    assert entry.shown.metadata["seed"] == 3


def test_default_perturbations_go_with_an_estimator_for_random_ones():
    found = run("report", "target.py", "--estimator", "Hutchinson(probes=2)", "--limit", 8)
    assert found.exit_code == 0, found.output
    report = Report.from_json(Path("tpv-report/report.json"))
    methods = {entry.perturbation: entry.train.metadata["estimator"] for entry in report.entries}
    assert len(methods) == len(measuring.DEFAULTS)
    assert methods["Quantization(bits=4)"] == "Hutchinson(probes=2)"
    assert methods["Quantization(bits=4, error='actual')"].startswith("Exact()")


NOISE = "LabelNoise(std=0.1, fit=GradientDescent(lr=None, steps=5))"


def label_noise(**options):
    """What the library says of the first training and test inputs of the target."""
    torch.manual_seed(0)
    space = {}
    exec(TARGET, space)
    train, test = [space["train_data"][:12]], [torch.cat(space["test_data"]())[:12]]
    law = tpv.LabelNoise(0.1, train, tpv.GradientDescent(None, 5))
    return tpv.stability(space["model"], train, test, law, **options)


@pytest.mark.parametrize("output", ["logits", "kl"])
def test_label_noise_is_fitted_on_the_reports_own_training_inputs(output):
    found = run("report", "target.py", "-p", NOISE, "--label-noise-examples", 12, "--output", output)
    assert found.exit_code == 0, found.output
    report = Report.from_json(Path("tpv-report/report.json"))
    (entry,) = report.noise
    expected = label_noise() if output == "logits" else label_noise(output="kl")
    assert entry.stability.train.metadata["output"] == {"logits": "centered logits", "kl": "kl"}[output]
    for side in ("train", "test", "cross_fitted", "test_of_halves"):
        here, there = (getattr(result, side) for result in (entry.stability, expected))
        assert (here.value, here.n_examples) == (pytest.approx(there.value, rel=1e-5), 12)
    assert entry.stability.train.spectrum is not None
    assert entry.linearity.n_examples == 30
    assert report.settings["label_noise_examples"] == 12
    assert "train, cross-fitted" in found.stdout
    assert 'id="noise"' in Path("tpv-report/report.html").read_text()
    assert max(map(len, found.stdout.splitlines())) <= 80


def test_label_noise_keeps_a_shuffled_loader_in_one_order():
    loader = "train_data = torch.utils.data.DataLoader(torch.randn(40, 4, generator=generator), batch_size=8, shuffle=True)\n"
    Path("target.py").write_text(TARGET + loader)
    found = run("report", "target.py", "-p", NOISE)
    assert found.exit_code == 0, found.output
    assert Report.from_json(Path("tpv-report/report.json")).noise[0].train.n_examples == 40


def test_label_noise_with_probes_or_draws():
    run("report", "target.py", "-p", NOISE, "--estimator", "Hutchinson(probes=2)")
    report = Report.from_json(Path("tpv-report/report.json"))
    assert report.noise[0].train.metadata["estimator"].startswith("Exact()")
    assert report.headline.train.metadata["estimator"] == "Hutchinson(probes=2)"
    run("report", "target.py", "-p", NOISE, "--estimator", "LinearizedMonteCarlo(draws=3)")
    (entry,) = Report.from_json(Path("tpv-report/report.json")).noise
    assert entry.train.metadata["estimator"] == "LinearizedMonteCarlo(draws=3)"
    assert entry.stability.cross_fitted is not None


def test_label_noise_without_test_data_is_in_sample():
    Path("target.py").write_text(TARGET.replace("def test_data", "def other"))
    found = run("report", "target.py", "-p", NOISE)
    assert found.exit_code == 0, found.output
    assert "in sample only" in found.stdout
    assert Report.from_json(Path("tpv-report/report.json")).noise[0].stability is None


WIDE = TARGET.replace("torch.nn.Linear(8, 3)", "torch.nn.Linear(8, 500)")
DEAD = (
    TARGET.replace("generator = ", "torch.manual_seed(0)\ngenerator = ")
    + "\nfor p in model.parameters():\n    p.data.zero_()\n"
)
LEFT_OUT = {
    WIDE: "the kernel of 40 training examples × 500 outputs takes",
    DEAD: "all training outputs are 0",
}


@pytest.mark.parametrize("source", LEFT_OUT, ids=["wide", "dead"])
def test_the_default_label_noise_is_left_out_aloud_and_never_one_that_is_asked_for(source, monkeypatch):
    monkeypatch.setattr(measuring, "DEFAULTS", (measuring.NOISE,))
    Path("target.py").write_text(source)
    found = run("report", "target.py", "--limit", 40)
    assert found.exit_code == 0, found.output
    report = Report.from_json(Path("tpv-report/report.json"))
    assert report.noise == ()
    assert LEFT_OUT[source] in report.noise_left_out
    assert f'-p "{measuring.NOISE!r}"' in report.noise_left_out
    for told in (found.stdout, Path("tpv-report/report.html").read_text()):
        assert "left out here" in " ".join(told.split())
    asked = run("report", "target.py", "--limit", 2, "-p", repr(measuring.NOISE))
    assert asked.exit_code == (0 if source == WIDE else 2)
    if source == WIDE:
        assert len(Report.from_json(Path("tpv-report/report.json")).noise) == 1
    else:
        assert "all training outputs are 0" in asked.stderr


def test_label_noise_of_one_example_cannot_be_crossed(monkeypatch):
    monkeypatch.setattr(measuring, "DEFAULTS", (measuring.NOISE,))
    run("report", "target.py", "--limit", 1)
    assert (
        "there is one example: give a higher --limit"
        in Report.from_json(Path("tpv-report/report.json")).noise_left_out
    )
    assert "cross-fitting needs at least two training examples" in refused(
        "report", "target.py", "--limit", 1, "-p", NOISE
    )
    assert run("report", "target.py", "--label-noise-examples", 1).exit_code == 2


def test_stages_of_a_report():
    subject, events = load_target("target.py"), []
    perturbations = parse_perturbation(NOISE), tpv.Isotropic(0.1)
    plan = measuring.Plan(perturbations, label_noise_examples=12)
    measuring.measure(subject, plan, ResumableStore(None, "a" * 64), events.append)
    stages = {part: [] for part in (1, 2, 3)}
    for event in events:
        assert event.parts == 3
        name, *inner = event.stage.split(" · ")
        assert name == repr((measuring.HEADLINE, *perturbations)[event.part - 1])
        stages[event.part].append(" · ".join(inner))
    passes = {part: list(dict.fromkeys(s for s in stages[part] if " · " not in s and s)) for part in stages}
    assert passes == {
        1: ["train", "test"],
        2: ["train", "test", "cross-fitted", "test of halves", "linearity"],
        3: ["train", "test", "linearity"],
    }
    assert {"train · measuring · kernel", "test · measuring · kernel"} <= set(stages[2])
    last = {event.stage.partition(" · ")[2]: event for event in events if event.part == 2}
    for name in ("train · measuring", "test of halves · measuring"):
        assert (last[name].done, last[name].total) == (12, 12)


def test_json_alone_on_stdout():
    Path("target.py").write_text(TARGET + "\nprint('loading')\n")
    found = run("report", "target.py", "-p", "Isotropic(0.1)", "--json", "--out", "there")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["format"] == "tpv-report"
    assert Report.from_json(found.stdout) == Report.from_json(Path("there/report.json"))
    assert "loading" in found.stderr


@pytest.mark.parametrize("kind", ["module", "loader", "mappings", "forward"])
def test_targets_of_every_form(kind, folder):
    forms = {
        "module": "train_data = torch.randn(9, 4)",
        "loader": "def train_data(): return torch.utils.data.DataLoader([torch.randn(4) for _ in range(9)], batch_size=4, shuffle=True)",
        "mappings": "train_data = [{'input': torch.randn(3, 4), 'label': 1} for _ in range(3)]",
        "forward": "train_data = [{'odd': torch.randn(3, 4)}] * 3\ndef forward(model, batch): return model(batch['odd'])",
    }
    Path(f"own_{kind}.py").write_text(f"import torch\nmodel = torch.nn.Linear(4, 2).eval()\n{forms[kind]}\n")
    found = run(
        "report",
        f"own_{kind}" if kind == "module" else f"own_{kind}.py",
        "-p",
        "Isotropic(0.1)",
        "--limit",
        7,
    )
    assert found.exit_code == 0, found.output
    report = Report.from_json(Path("tpv-report/report.json"))
    assert report.title == f"own_{kind}"
    assert report.headline.train.n_examples == report.entries[0].linearity.n_examples == 7
    assert report.headline.stability is None


def test_a_perturbation_from_the_users_own_file():
    Path("noise.py").write_text("import tpv\nclass Own(tpv.Isotropic):\n    pass\n")
    found = run("report", "target.py", "-p", "noise:Own(std=0.1)")
    assert found.exit_code == 0, found.output
    assert "Own(std=0.1)" in found.stdout


BAD_TARGETS = {
    "import torch\ntrain_data = torch.ones(3, 4)": r"t.py defines no model: a target defines model, train_data and optionally test_data",
    "import torch\nmodel = torch.nn.Linear(4, 2)": r"t.py defines no train_data: a target",
    "import torch\nmodel = torch.nn.Linear(4, 2)\ntrain_dat = 1": r"Did you mean 'train_dat'\?",
    "model = {}\ntrain_data = []": r"model in t.py is of type dict, not a torch.nn.Module\.",
    "\n\nraise ValueError('boom\\nmore')": r"t.py cannot be loaded \(line 3\): ValueError: boom$",
    "def f(:": r"t.py cannot be loaded \(line 1\): SyntaxError: invalid syntax",
    "import no_such_module_anywhere": r"t.py cannot be loaded \(line 1\): ModuleNotFoundError",
    "raise SystemExit('download it first')": r"t.py cannot be loaded: download it first",
    "def model():\n    return 1 / 0": r"t.py failed in model\(\) \(line 2\): ZeroDivisionError: division by zero",
    "def model(depth): ...": r"t.py failed in model\(\): TypeError: .*missing 1 required positional argument: 'depth'",
    "import torch\nmodel = torch.nn.Sequential(torch.nn.BatchNorm1d(4))\ntrain_data = torch.ones(3, 4)": r"call model\.eval\(\) first",
    "import torch\nmodel = torch.nn.Linear(4, 2)\ntrain_data = []": r"data is empty",
    "import torch\nmodel = torch.nn.Linear(4, 2)\ndef train_data(): yield torch.ones(3, 4)": r"one-shot iterator",
    "import torch\nmodel = torch.nn.Linear(4, 2).requires_grad_(False)\ntrain_data = torch.ones(3, 4)": r"requires_grad_\(True\)",
}


@pytest.mark.parametrize("source", BAD_TARGETS)
def test_bad_targets(source):
    Path("t.py").write_text(source)
    assert re.search(BAD_TARGETS[source], refused("report", "t.py"))


def test_missing_targets():
    assert refused("report", "tarket.py") == "tpv: there is no file tarket.py. Did you mean 'target.py'?"
    assert "there is no file no/such.py" in refused("report", "no/such.py")
    assert "there is no module 'no.such'" in refused("report", "no.such")


def test_bad_options():
    assert "Did you mean 'Quantization'?" in refused("report", "target.py", "-p", "Quantisation(bits=4)")
    assert "bits must be an int in [1, 16]" in refused("report", "target.py", "-p", "Quantization(bits=0)")
    assert "'Exac' is not an estimator" in refused("report", "target.py", "--estimator", "Exac")
    assert "--device nowhere: " in refused("report", "target.py", "--device", "nowhere")
    assert "cannot write to target.py/x (Not a directory): choose another folder with --out." in refused(
        "report", "target.py", "--out", "target.py/x"
    )
    for arguments in (
        ["report"],
        ["report", "target.py", "--limit", "0"],
        ["report", "target.py", "--nope"],
        ["nope"],
    ):
        found = run(*arguments)
        assert found.exit_code == 2
        assert "Traceback" not in found.output


def test_an_error_in_the_model_names_debug():
    Path("t.py").write_text(TARGET.replace("randn(40, 4,", "randn(40, 5,"))
    sentence = refused("report", "t.py", code=1)
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in sentence
    assert sentence.endswith("--debug shows the traceback.")
    assert isinstance(run("report", "t.py", "--debug").exception, RuntimeError)


@pytest.fixture
def counted(monkeypatch):
    """Perturbations as they are computed; ``counted.stop_at`` raises at the so-manieth."""

    class Counted(list):
        stop_at, error = None, KeyboardInterrupt

    calls, real = Counted(), measuring.stability

    def stability(model, train, test, perturbation, **settings):
        if len(calls) == calls.stop_at:
            raise calls.error
        calls.append(repr(perturbation))
        return real(model, train, test, perturbation, **settings)

    monkeypatch.setattr(measuring, "stability", stability)
    # weights are random at every load and test data at every call, and a fingerprint includes them
    steady = TARGET.replace(
        "def test_data():", "def test_data():\n    generator = torch.Generator().manual_seed(1)"
    )
    Path("target.py").write_text(steady.replace("model =", "torch.manual_seed(0)\nmodel ="))
    return calls


def test_an_interrupted_run_resumes(counted):
    counted.stop_at = 2
    assert (
        refused("report", "target.py", *QUICK, code=130)
        == "tpv: interrupted: 2 of 3 parts are finished; the same command resumes."
    )
    assert counted == ["Isotropic(std=1.0)", "Quantization(bits=4)"]
    counted.stop_at = None
    found = run("report", "target.py", *QUICK)
    assert "Resumed: 2 of 3 parts were finished before; --fresh starts from scratch." in found.stderr
    assert counted == ["Isotropic(std=1.0)", "Quantization(bits=4)", "SGDNoise(lr=0.01, batch_size=8)"]
    resumed = Report.from_json(Path("tpv-report/report.json"))

    assert "Resumed" not in run("report", "target.py", *QUICK).stderr
    assert len(counted) == 6, "a finished report is computed anew"
    anew = Report.from_json(Path("tpv-report/report.json"))
    assert [e.train.value for e in resumed.all_entries] == [e.train.value for e in anew.all_entries]


@pytest.mark.parametrize(
    "change",
    ["fresh", "seed", "limit", "estimator", "noise", "target", "weights", "data", "corrupt"],
)
def test_what_would_change_a_number_does_not_resume(counted, change):
    counted.stop_at, counted.error = 2, RuntimeError("boom")
    refused("report", "target.py", *QUICK, code=1)
    counted.clear()
    counted.stop_at = None
    options = {
        "fresh": ["--fresh"],
        "seed": ["--seed", 1],
        "limit": ["--limit", 5],
        "estimator": ["--estimator", "Hutchinson"],
    }
    options["noise"] = ["--label-noise-examples", 7]
    if change == "target":
        Path("target.py").write_text(Path("target.py").read_text() + "\n# changed\n")
        sys.modules.pop("target")
    if change == "weights":
        sys.modules["target"].model[0].bias.data += 1
    if change == "data":
        sys.modules["target"].train_data[0] += 1
    if change == "corrupt":
        entries = sorted(Path("tpv-report").glob("unfinished-*"))
        assert len(entries) == 2
        for entry in entries:
            entry.write_text('{"headline": 3')
    found = run("report", "target.py", *QUICK, *options.get(change, []))
    assert found.exit_code == 0, found.output
    assert "Resumed" not in found.stderr
    assert len(counted) == 3
    if change == "corrupt":
        sentence = r"tpv: tpv-report/unfinished-\S+ cannot be read \(.*\), so its part is computed again: "
        sentence += r"--fresh forgets all such files\.$"
        assert [bool(re.match(sentence, line)) for line in found.stderr.splitlines()] == [True, True]


def test_an_interrupted_run_keeps_its_label_noise(counted):
    counted.stop_at = 2
    run("report", "target.py", "-p", NOISE, "-p", "Isotropic(0.1)")
    counted.stop_at = None
    found = run("report", "target.py", "-p", NOISE, "-p", "Isotropic(0.1)")
    assert "Resumed: 2 of 3" in found.stderr
    assert counted == [
        "Isotropic(std=1.0)",
        "LabelNoise(std=0.1, fit=GradientDescent(lr=None, steps=5))",
        "Isotropic(std=0.1)",
    ]
    (entry,) = Report.from_json(Path("tpv-report/report.json")).noise
    assert entry.shown.spectrum is not None
    assert entry.stability.cross_fitted is not None


def test_another_order_of_perturbations_resumes_too(counted):
    counted.stop_at = 2
    run("report", "target.py", *QUICK)
    counted.stop_at = None
    found = run("report", "target.py", "-p", "Isotropic(0.1)", *QUICK)
    assert "Resumed: 2 of 4" in found.stderr
    assert counted[2:] == ["Isotropic(std=0.1)", "SGDNoise(lr=0.01, batch_size=8)"]


def test_demo_reports_on_digits(monkeypatch):
    images, labels = demo._digits()
    monkeypatch.setattr(demo, "_digits", lambda: (images[:260], labels[:260]))
    monkeypatch.setattr(demo, "_TRAIN", 200)
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    state = torch.get_rng_state()
    found = run("demo")
    assert found.exit_code == 0, found.output
    assert torch.equal(torch.get_rng_state(), state)
    assert found.stdout.splitlines()[-1] == "Report: tpv-demo/report.html"
    assert max(map(len, found.stdout.splitlines())) <= 80
    report = Report.from_json(Path("tpv-demo/report.json"))
    assert (report.headline.train.n_examples, report.headline.shown.n_examples) == (200, 60)


def test_demo_network_learns():
    network = demo.model()
    right = torch.cat([network(images).argmax(1) == labels for images, labels in demo.test_data()])
    assert len(right) == 500
    assert right.double().mean() > 0.95


def test_demo_without_scikit_learn(monkeypatch):
    demo._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert run("demo").stderr.endswith("tpv: the demo needs scikit-learn: pip install 'tpv[cli]'\n")


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("typer", "rich") else object()
    )
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "tpv: the command line needs typer, rich: pip install 'tpv[cli]'\n"


def process(*arguments):
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "tpv", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def test_version_in_a_process():
    found = process("--version")
    assert (found.returncode, found.stdout) == (0, f"tpv {version('tpv')}\n")


def test_a_bad_target_in_a_process():
    Path("t.py").write_text("import torch")
    found = process("report", "t.py")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("tpv: t.py defines no model: ")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_real_interrupt_and_then_the_rest():
    stop = "def forward(model, batch):\n    import os, signal, pathlib\n    if pathlib.Path('tpv-report').exists() and kept() and not done():\n"
    stop += f"        pathlib.Path('stopped').touch()\n        signal.signal(signal.SIGINT, signal.default_int_handler)\n        os.kill(os.getpid(), {int(signal.SIGINT)})\n    return model(batch)\n"
    stop += "def kept(): import pathlib; return any('headline' in f.read_text() for f in pathlib.Path('tpv-report').glob('unf*'))\n"
    stop += "def done(): import pathlib; return pathlib.Path('stopped').exists()\n"
    Path("t.py").write_text(TARGET.replace("model =", "torch.manual_seed(0)\nmodel =") + stop)
    found = process("report", "t.py", *QUICK)
    assert found.returncode == 130, found.stderr
    assert found.stderr == "tpv: interrupted: 1 of 3 parts are finished; the same command resumes.\n"
    found = process("report", "t.py", *QUICK)
    assert found.returncode == 0, found.stderr
    assert found.stderr.startswith("Resumed: 1 of 3 parts")
    assert max(map(len, found.stdout.splitlines())) <= 80
