"""Pruned networks on disk: the same numbers afterwards, every mismatch refused, nobody else's files replaced."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import randn, seeded
from prunings import prune
from torch import nn

import tpv.pruning
from tpv import Estimate, TPVError
from tpv.integrations.torch_pruning import channel_groups
from tpv.pruning import PruningStep
from tpv.pruning.channels.surgery import remove
from tpv.pruning.files import checkpoint


class Padded(nn.Module):
    """A shortcut of option A."""

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.shortcut = Padded()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.outer(self.inner_norm(self.inner(x)).relu()) + self.shortcut(x)
        return self.head(x.relu().mean((2, 3)))


class Tied(nn.Module):
    """Two names of one layer, and a mapping as its batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 8)
        self.again = self.mix
        self.back = nn.Linear(8, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embed.weight

    def forward(self, ids, scale=1.0):
        return self.head(self.back(self.mix(self.embed(ids)).relu())).mean(1) * scale


def chain():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))


CASES = {
    "chain": (chain, lambda: randn(2, 5), {"0": [1, 4], "2": [0]}),
    "half": (lambda: chain().half(), lambda: randn(2, 5).half(), {"0": [1, 4], "2": [0]}),
    "bfloat16": (
        lambda: chain().bfloat16(),
        lambda: [randn(2, 5).bfloat16(), torch.ones(2, dtype=torch.long)],
        {"2": [3]},
    ),
    "tied": (Tied, lambda: {"ids": torch.ones(2, 4, dtype=torch.long), "scale": 2.0}, {"mix": [2, 3, 5]}),
    "nothing": (chain, lambda: randn(2, 5), {}),
}


def built(build, seed=0):
    torch.manual_seed(seed)
    model = build().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(generator=seeded(seed))
            m.running_var.uniform_(0.5, 2, generator=seeded(seed))
    return model


def pruned(name="chain"):
    build, batch, removed = CASES[name]
    model, example = built(build), batch() if name in ("half", "bfloat16", "tied") else batch().float()
    return model, example, remove(model, example, channel_groups(model, example), removed)


def outputs(model, example):
    with torch.no_grad():
        return tpv.pruning.channels.tracing.call_model(model, example)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_has_the_same_outputs_bit_for_bit(name, tmp_path):
    model, example, cut = pruned(name)
    folder = tmp_path / "a folder's #1 (50 %) ünï"
    tpv.pruning.save(cut, folder, unpruned=model)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "pruning.json"]
    fresh = built(CASES[name][0], seed=1).float().train()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    loaded = tpv.pruning.load(fresh, str(folder))
    assert torch.equal(outputs(loaded, example), outputs(cut, example))
    assert outputs(loaded, example).dtype == outputs(cut, example).dtype
    assert not any(m.training for m in loaded.modules())
    assert fresh.training
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in cut.named_parameters()
    }


def test_frozen_parameters_stay_frozen(tmp_path):
    model = built(chain)
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    x = randn(2, 5).float()
    cut = remove(model, x, channel_groups(model, x), {"0": [1], "2": [2]})
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    loaded = tpv.pruning.load(built(chain), tmp_path)
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["0.bias", "2.weight"]


def test_a_bias_that_the_unpruned_network_lacks(tmp_path):
    model, x = built(chain), randn(64, 5).float()
    groups, removed = channel_groups(model, x[:2]), {"0": [0, 1, 2], "2": [4]}
    cut = remove(model, x[:2], groups, removed)
    cut[2].bias = nn.Parameter(torch.randn(5))
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    assert torch.equal(tpv.pruning.load(built(chain, 1), tmp_path)(x), cut(x))


@pytest.mark.parametrize("kept_with", ["replaced", "as it was"])
@pytest.mark.parametrize("loaded_with", ["replaced", "as it was"])
def test_padding_shortcuts_are_replaced_where_they_were(kept_with, loaded_with, tmp_path):
    model, x = built(Residual), randn(4, 3, 8, 8).float()
    original = built(Residual)
    assert tpv.model.shortcuts.replace_padding_shortcuts(model, x) == ["shortcut"]
    cut = remove(model, x, channel_groups(model, x), {"inner": [1, 5], "stem": [0], "outer": [0, 7]})
    tpv.pruning.save(cut, tmp_path, unpruned=model if kept_with == "replaced" else original)
    fresh = built(Residual, 1)
    if loaded_with == "replaced":
        tpv.model.shortcuts.replace_padding_shortcuts(fresh, x)
    loaded = tpv.pruning.load(fresh, tmp_path)
    assert torch.equal(loaded(x), cut(x))
    assert not loaded.shortcut.weight.requires_grad
    assert isinstance(fresh.shortcut, Padded) == (loaded_with == "as it was")


def test_batches_of_any_kind_are_not_needed_to_load(tmp_path):
    class Text:
        ids = torch.ones(2, 4, dtype=torch.long)

    def forward(model, batch):
        return model(batch.ids)

    model = built(Tied)
    cut = remove(model, Text(), channel_groups(model, Text(), forward=forward), {"mix": [2]}, forward)
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    loaded = tpv.pruning.load(built(Tied, 1), tmp_path)
    assert torch.equal(loaded(Text.ids), cut(Text.ids))
    assert loaded.head.weight is loaded.embed.weight


def rewritten(folder, **changes):
    path = folder / "pruning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_bytes(folder, name, data):
    (folder / name).write_bytes(data)


DAMAGE = {
    r"there is no pruning\.json in .*: give a folder that": lambda f: (f / "pruning.json").unlink(),
    r"there is no model\.safetensors in ": lambda f: (f / "model.safetensors").unlink(),
    r"pruning\.json is broken, it is not JSON: ": lambda f: as_bytes(f, "pruning.json", b'{"format": "tpv-p'),
    r"pruning.json is broken, it is not JSON: .*utf-8": lambda f: as_bytes(f, "pruning.json", b"\xff\xfe"),
    r"its format is not 'tpv-pruned-model'": lambda f: rewritten(f, format="other"),
    r"its format is not 'tpv-pruned-model'\.$": lambda f: as_bytes(f, "pruning.json", b"[1]"),
    r"has version 99, and this tpv reads version 2": lambda f: rewritten(f, version=99),
    r"do not belong together: save the model again": lambda f: rewritten(f, frozen=["2.weight"]),
    r"model\.safetensors is broken: ": lambda f: as_bytes(
        f, "model.safetensors", b"\x08\0\0\0\0\0\0\0not json"
    ),
    r"safetensors is broken: .*": lambda f: as_bytes(
        f, "model.safetensors", (f / "model.safetensors").read_bytes()[:-1]
    ),
    r"is broken: ": lambda f: as_bytes(f, "model.safetensors", b""),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_files(sentence, tmp_path):
    model, _example, cut = pruned()
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    DAMAGE[sentence](tmp_path)
    with pytest.raises(TPVError, match=sentence) as refused:
        tpv.pruning.load(built(chain), tmp_path)
    assert "\n" not in str(refused.value)


def test_layout_of_the_description_does_not_matter(tmp_path):
    model, example, cut = pruned()
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    rewritten(tmp_path)
    assert torch.equal(tpv.pruning.load(built(chain), tmp_path)(example), cut(example))


OTHERS = {
    r"^0\.weight of the model is of shape \(8, 5\), and that of the saved one was \(7, 5\) before pruning: ": lambda: (
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    ),
    r"^the model has no 4\.weight, which the saved one has": lambda: chain()[:4],
    r"^the saved model has no 5\.weight, which this one has": lambda: chain().append(nn.Linear(3, 3)),
    r"^the model has no 2\.weight, ": lambda: nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Identity(), nn.ReLU(), nn.Linear(6, 3)
    ),
}


@pytest.mark.parametrize("sentence", OTHERS)
def test_another_architecture(sentence, tmp_path):
    model, _example, cut = pruned()
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    with pytest.raises(TPVError, match=sentence + r".*[^\n]*$"):
        tpv.pruning.load(OTHERS[sentence](), tmp_path)


def test_a_model_that_is_pruned_already_is_refused(tmp_path):
    model, _example, cut = pruned()
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    with pytest.raises(
        TPVError, match=r"0\.weight of the model is of shape \(5, 5\).*give an unpruned instance"
    ):
        tpv.pruning.load(cut, tmp_path)


BROKEN = {
    "sizes": {"nowhere": {"in_features": 3}},
    "unknown size": {"0": {"in_feature": 3}},
    "not an int": {"0": {"in_features": "3"}},
    "a flag": {"0": {"training": 1}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_description_of_another_model(name, tmp_path, monkeypatch):
    """Attributes come from a file: only sizes that the model has may be changed by it."""
    model, _, cut = pruned()
    real = checkpoint.describe
    monkeypatch.setattr(checkpoint, "describe", lambda *a: real(*a) | {"sizes": BROKEN[name]})
    tpv.pruning.save(cut, tmp_path, unpruned=model)
    with pytest.raises(TPVError, match=r"which the saved one has|pruning\.json is broken") as refused:
        tpv.pruning.load(built(chain), tmp_path)
    assert "\n" not in str(refused.value)


def test_nowhere_to_write(tmp_path):
    model, _example, cut = pruned()
    (tmp_path / "file").touch()
    with pytest.raises(
        TPVError, match=r"cannot write to .*file/x \(Not a directory\): choose another folder\.$"
    ):
        tpv.pruning.save(cut, tmp_path / "file/x", unpruned=model)


def networks():
    """Two different networks from one."""
    model, x = built(chain), randn(2, 5).float()
    groups = channel_groups(model, x)
    return model, x, *(remove(model, x, groups, {"0": gone}) for gone in ([1], [1, 2, 3]))


KILLED = """
import os, sys
from pathlib import Path
import torch
from test_store import networks
import tpv.pruning
model, x, _, new = networks()
count, real = int(sys.argv[2]), os.replace
def replace(*args):
    global count
    if count == 0:
        os.kill(os.getpid(), 9)
    count -= 1
    real(*args)
os.replace = replace
tpv.pruning.save(new, sys.argv[1], unpruned=model)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_kill_between_two_files_loses_nothing(at, tmp_path):
    model, x, old, new = networks()
    tpv.pruning.save(old, tmp_path, unpruned=model)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    code = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(at)], env=environment, check=False)
    assert (code.returncode == 0) == (at == 3)
    loaded = tpv.pruning.load(built(chain, 1), tmp_path)(x)
    assert torch.equal(loaded, old(x) if at < 2 else new(x))
    tpv.pruning.save(old, tmp_path, unpruned=model)
    assert torch.equal(tpv.pruning.load(built(chain, 1), tmp_path)(x), old(x))
    assert at != 2 or sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "pruning.json"]


@pytest.mark.parametrize("name", ["model.safetensors", "pruning.json", "log.json"])
@pytest.mark.parametrize("how", ["save", "result", "prune"])
def test_files_of_others_are_not_replaced(how, name, tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "thesis.tex").write_text("three years of work")
    (tmp_path / name).write_text('{"mine": 1}')
    model, _, cut = pruned()
    result = prune(**arguments(steps=1, compensate=False))

    def write(**options):
        if how == "save":
            tpv.pruning.save(cut, tmp_path, unpruned=model, **options)
        elif how == "result":
            result.save(tmp_path, **options)
        else:
            prune(**arguments(steps=1, compensate=False), out=tmp_path, **options)

    if (how, name) == ("save", "log.json"):
        write()
        return
    with pytest.raises(TPVError, match=f"has {name} that tpv did not write: .*overwrite=True"):
        write()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "steps"])
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    write(overwrite=True)
    write()
    assert (tmp_path / "steps" / "thesis.tex").read_text() == "three years of work"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    model, _, cut = pruned()
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere.json"
    folder.mkdir()
    elsewhere.write_text("mine")
    (folder / "pruning.json").symlink_to(elsewhere)
    tpv.pruning.save(cut, folder, unpruned=model, overwrite=True)
    assert elsewhere.read_text() == "mine"


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def estimate(value):
    return Estimate(value, value / 10, 0.0)


def a_step(share, **changes):
    values = {
        "removed": {"0": [1, 4], "2": []},
        "macs": 10,
        "params": 20,
        "macs_share": share,
        "params_share": share,
        "cost_share": share,
        "linearity": math.nan,
    }
    return PruningStep(
        **values
        | {name: estimate(share) for name in ("predicted", "output_change_before_repair", "output_change")}
        | changes
    )


def test_a_step_survives_json_unchanged():
    for step in (
        a_step(0.5),
        a_step(0.5, output_change_test=estimate(3.0), accuracy=Estimate(0.9, math.nan, 0.0), seconds=1.5),
    ):
        back = PruningStep.from_json(step.to_json())
        assert repr(back) == repr(step)  # nan is not equal to itself
        assert back.removed == {"0": (1, 4), "2": ()}
    assert PruningStep.from_json(a_step(0.5, linearity=1.0).to_json()) == a_step(0.5, linearity=1.0)


def a_network():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)
    ).eval()


def arguments(**changes):
    x = randn(60, 6).float()
    asked = {"target": "params=0.4", "steps": 3, "test": [(x[:20], torch.arange(20) % 3)], "compensate": True}
    return {"model": a_network(), "data": [x[:40], x[40:]]} | asked | changes


def test_a_result_saves_itself(tmp_path):
    result = prune(**arguments(allocation="curves", steps=1))
    result.save(tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "log.json",
        "model.safetensors",
        "pruning.json",
    ]
    x = arguments()["data"][0]
    assert torch.equal(tpv.pruning.load(a_network(), tmp_path / "kept")(x), result.model(x))
    log = json.loads((tmp_path / "kept/log.json").read_text())
    assert log == json.loads(result.to_json())
    assert log["curves"]["0"]["12"] == 0.0
    assert PruningStep.from_dict(log["steps"][0]) == result.steps[0]
    with pytest.raises(TPVError, match=r"does not know the unpruned network: use tpv\.pruning\.save"):
        dataclasses.replace(result, unpruned=None).save(tmp_path)


def made_by_hand(*steps, **metadata):
    return tpv.pruning.PruningResult(
        chain(), steps, {}, {"stem": "ignored", "norm": "ignored", "x": "has a single channel"}, metadata
    )


UNPRUNED = {"accuracy": {"value": 0.95, "stderr": 0.01, "mc_stderr": 0.0}, "widths": {"0": 7, "2": 6}}


def test_a_result_as_text():
    steps = [
        a_step(share, output_change_test=estimate(2 * share), accuracy=estimate(share))
        for share in (0.8, 0.5)
    ]
    text = str(
        made_by_hand(
            *steps,
            unpruned=UNPRUNED,
            criterion="JBR(confidence=0.0)",
            target="Target('macs', 0.5)",
            recalibrate=True,
        )
    )
    assert text.splitlines()[0] == "Target('macs', 0.5), JBR(confidence=0.0), recalibrated"
    assert re.search(r"^0 +100\.0 % +100\.0 % +95\.0 ± 1\.0 %$", text, re.MULTILINE)
    assert re.search(
        r"^2 +50\.0 % +50\.0 % +0\.50 ± 0\.05 +0\.50 ± 0\.05 +1\.00 ± 0\.10 +50 ± 5 %$", text, re.MULTILINE
    )
    assert "Widths: 0: 7 → 5, 2: 6 → 6" in text
    assert "Left alone: stem, norm (ignored)." in text
    assert "Left alone: x (has a single channel)." in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_result_as_text_without_test_inputs_and_with_long_numbers():
    text = str(made_by_hand(a_step(0.5)))
    assert "on test" not in text
    assert "accuracy" not in text
    assert "Widths: 0 −2, 2 −0" in text
    long = Estimate(1.2345e-9, 1.234e-12, 0.0)
    changes = dict.fromkeys(
        ("predicted", "output_change_before_repair", "output_change", "output_change_test", "accuracy"), long
    )
    names = {f"layer{i}.of.a.long.name": "of a reason that takes many words, " * 4 for i in range(9)}
    result = dataclasses.replace(made_by_hand(a_step(0.5, **changes), unpruned=UNPRUNED), excluded=names)
    assert "1.23e-09" in str(result)
    assert max(map(len, str(result).splitlines())) <= 80
    spelt_out = "TPVImportance(probes=1, parameters='consumers', output='logits', interactions=True)"
    assert spelt_out.split() == str(made_by_hand(criterion=spelt_out)).split()[:4], "broken inside a word"


def test_a_result_as_a_table():
    pytest.importorskip("pandas")
    frame = made_by_hand(a_step(0.8, accuracy=estimate(0.9)), a_step(0.5)).to_pandas()
    assert list(frame.index) == [1, 2]
    assert frame.index.name == "step"
    assert frame.loc[2, "output_change"] == 0.5
    assert frame.loc[1, "accuracy_stderr"] == pytest.approx(0.09)
    assert math.isnan(frame.loc[2, "accuracy"])


def test_a_result_as_a_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    steps = [a_step(share, params_share=share / 2, accuracy=estimate(share)) for share in (0.8, 0.5)]
    left, right = made_by_hand(*steps, unpruned=UNPRUNED).plot()
    for ax, shares in ((left, [1.0, 0.8, 0.5]), (right, [1.0, 0.4, 0.25])):
        points, _, (bars,) = ax.containers[0]
        assert points.get_xdata().tolist() == shares
        assert points.get_ydata().tolist() == [0.95, 0.8, 0.5]
        assert bars.get_segments()[1][:, 1].tolist() == pytest.approx([0.72, 0.88])
    assert left.get_ylim() == right.get_ylim()
    assert left.get_yscale() == "linear"
    matplotlib.pyplot.close("all")
    left, _ = made_by_hand(
        *(a_step(share, output_change_test=estimate(1 - share)) for share in (1.0, 0.5))
    ).plot()
    assert left.get_yscale() == "log"
    assert [c.get_label() for c in left.containers] == ["test inputs", "calibration inputs", "first order"]
    assert left.containers[0][0].get_xdata().tolist() == [0.5], "0 has no place on a logarithmic axis"
    with pytest.raises(TPVError, match="is drawn on two axes, got 1"):
        made_by_hand(a_step(0.5)).plot([left])
    with pytest.raises(TPVError, match="no positive value to plot"):
        made_by_hand().plot()
    matplotlib.pyplot.close("all")


def test_plots_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'tpv\[plot\]'"):
        made_by_hand(a_step(0.5)).plot()
