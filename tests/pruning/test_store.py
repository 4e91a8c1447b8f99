"""Pruned networks on disk: the same numbers afterwards, every mismatch told, nothing of another run taken for this one's."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import shutil
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from cases import randn, seeded
from torch import nn

import tpv.pruning
from tpv import Estimate, TPVError
from tpv.common.describe import told
from tpv.integrations.torch_pruning import channel_groups
from tpv.pruning import PruningStep
from tpv.pruning.channels.surgery import remove
from tpv.pruning.run import run as steps
from tpv.pruning.run.resume import PruningStore


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
    tpv.pruning.save(cut.model, folder, cut.history, example, unpruned=model)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "pruning.json"]
    fresh = built(CASES[name][0], seed=1).float().train()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    loaded = tpv.pruning.load(fresh, str(folder))
    assert torch.equal(outputs(loaded, example), outputs(cut.model, example))
    assert outputs(loaded, example).dtype == outputs(cut.model, example).dtype
    assert not any(m.training for m in loaded.modules())
    assert fresh.training
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in cut.model.named_parameters()
    }


def test_frozen_parameters_stay_frozen(tmp_path):
    model = built(chain)
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    x = randn(2, 5).float()
    cut = remove(model, x, channel_groups(model, x), {"0": [1], "2": [2]})
    tpv.pruning.save(cut.model, tmp_path, cut.history, x, unpruned=model)
    loaded = tpv.pruning.load(built(chain), tmp_path)
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["0.bias", "2.weight"]


def test_a_bias_that_the_unpruned_network_lacks(tmp_path):
    model, x = built(chain), randn(64, 5).float()
    groups, removed = channel_groups(model, x[:2]), {"0": [0, 1, 2], "2": [4]}
    cut = remove(model, x[:2], groups, removed)
    cut.model[2].bias = nn.Parameter(torch.randn(5))
    tpv.pruning.save(cut.model, tmp_path, cut.history, x[:2], unpruned=model)
    assert json.loads((tmp_path / "pruning.json").read_text())["added_biases"] == ["2"]
    assert torch.equal(tpv.pruning.load(built(chain, 1), tmp_path)(x), cut.model(x))


@pytest.mark.parametrize("kept_with", ["replaced", "as it was"])
@pytest.mark.parametrize("loaded_with", ["replaced", "as it was"])
def test_padding_shortcuts_are_replaced_where_they_were(kept_with, loaded_with, tmp_path):
    model, x = built(Residual), randn(4, 3, 8, 8).float()
    original = built(Residual)
    assert tpv.pruning.channels.shortcuts.replace_padding_shortcuts(model, x) == ["shortcut"]
    cut = remove(model, x, channel_groups(model, x), {"inner": [1, 5], "stem": [0], "outer": [0, 7]})
    tpv.pruning.save(
        cut.model, tmp_path, cut.history, x, unpruned=model if kept_with == "replaced" else original
    )
    fresh = built(Residual, 1)
    if loaded_with == "replaced":
        tpv.pruning.channels.shortcuts.replace_padding_shortcuts(fresh, x)
    loaded = tpv.pruning.load(fresh, tmp_path)
    assert torch.equal(loaded(x), cut.model(x))
    assert not loaded.shortcut.weight.requires_grad
    assert isinstance(fresh.shortcut, Padded) == (loaded_with == "as it was")


def test_a_batch_of_another_kind_needs_an_example(tmp_path):
    class Text:
        ids = torch.ones(2, 4, dtype=torch.long)

    def forward(model, batch):
        return model(batch.ids)

    model = built(Tied)
    cut = remove(model, Text(), channel_groups(model, Text(), forward=forward), {"mix": [2]}, forward)
    tpv.pruning.save(cut.model, tmp_path, cut.history, Text(), unpruned=model)
    with pytest.raises(TPVError, match=r"was not kept: give example=, such a batch\.$"):
        tpv.pruning.load(built(Tied), tmp_path, forward=forward)
    assert torch.equal(
        tpv.pruning.load(built(Tied, 1), tmp_path, example=Text(), forward=forward)(Text.ids),
        cut.model(Text.ids),
    )


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
    r"has version 99, and this tpv reads version 1": lambda f: rewritten(f, version=99),
    r"do not belong together: save the model again": lambda f: rewritten(f, history=[]),
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
    model, example, cut = pruned()
    tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    DAMAGE[sentence](tmp_path)
    with pytest.raises(TPVError, match=sentence) as refused:
        tpv.pruning.load(built(chain), tmp_path)
    assert "\n" not in str(refused.value)


def test_layout_of_the_description_does_not_matter(tmp_path):
    model, example, cut = pruned()
    tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    rewritten(tmp_path)
    assert torch.equal(tpv.pruning.load(built(chain), tmp_path)(example), cut.model(example))


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
    model, example, cut = pruned()
    tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    with pytest.raises(TPVError, match=sentence + r".*[^\n]*$"):
        tpv.pruning.load(OTHERS[sentence](), tmp_path)


def test_a_model_that_is_pruned_already_is_refused(tmp_path):
    model, example, cut = pruned()
    tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    with pytest.raises(
        TPVError, match=r"0\.weight of the model is of shape \(5, 5\).*give an unpruned instance"
    ):
        tpv.pruning.load(cut.model, tmp_path)


def test_a_history_of_another_model(tmp_path):
    model, example, cut = pruned()
    for history in ([["nowhere", True, [0]]], [["0", True, [99]]], [["1", True, [0]]], [["0", True, [6]]]):
        tpv.pruning.save(cut.model, tmp_path, history, example, unpruned=model)
        with pytest.raises(
            TPVError, match=r"cannot be removed from this model|do not fit what is left"
        ) as refused:
            tpv.pruning.load(built(chain), tmp_path)
        assert "\n" not in str(refused.value)


def test_nowhere_to_write(tmp_path):
    model, example, cut = pruned()
    (tmp_path / "file").touch()
    with pytest.raises(
        TPVError, match=r"cannot write to .*file/x \(Not a directory\): choose another folder\.$"
    ):
        tpv.pruning.save(cut.model, tmp_path / "file/x", cut.history, example, unpruned=model)


def test_saving_leaves_the_old_files_or_the_new_ones(tmp_path, monkeypatch):
    model, example, cut = pruned()
    tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    before = (tmp_path / "model.safetensors").read_bytes()

    def stopped(draft, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    cut.model[0].weight.data.zero_()
    with pytest.raises(KeyboardInterrupt):
        tpv.pruning.save(cut.model, tmp_path, cut.history, example, unpruned=model)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "pruning.json"]


# ---------------------------------------------------------------------------------------------------------------------
# What an interrupted run has finished
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
    return PruningStep(**values | {name: estimate(share) for name in ("predicted", "cut", "moved")} | changes)


def test_a_step_survives_json_unchanged():
    for step in (
        a_step(0.5),
        a_step(0.5, moved_test=estimate(3.0), accuracy=Estimate(0.9, math.nan, 0.0), seconds=1.5),
    ):
        back = PruningStep.from_json(step.to_json())
        assert repr(back) == repr(step)  # nan is not equal to itself
        assert back.removed == {"0": (1, 4), "2": ()}
    assert PruningStep.from_json(a_step(0.5, linearity=1.0).to_json()) == a_step(0.5, linearity=1.0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_store_gives_back_what_it_was_given(in_memory, tmp_path):
    model, x, cut = pruned()
    folder = None if in_memory else tmp_path / "out"
    store = PruningStore(folder, "one", fresh=False)
    assert (store.steps, store.curve("0")) == ([], None)
    store.add(a_step(0.5), cut, x, model)
    store.keep_curve("0", {1: 2.0, 10: math.nan, 7: 0.0})
    if not in_memory:
        store = PruningStore(folder, "one", fresh=False)
    (step,) = store.steps
    assert repr(step) == repr(a_step(0.5))
    found = store.model(built(chain, 1), 0)
    assert torch.equal(found.model(x), cut.model(x))
    assert found.history == cut.history
    assert list(store.curve("0")) == [1, 10, 7]
    assert store.curve("0")[1] == 2.0
    assert math.isnan(store.curve("0")[10])


def test_another_fingerprint_starts_afresh_and_loses_nothing(tmp_path):
    model, x, cut = pruned()
    PruningStore(tmp_path, "one", fresh=False).add(a_step(0.5), cut, x, model)
    other = PruningStore(tmp_path, "other", fresh=False)
    assert other.steps == []
    other.add(a_step(0.25), cut, x, model)
    assert [len(PruningStore(tmp_path, name, fresh=False).steps) for name in ("one", "other")] == [1, 1]
    assert PruningStore(tmp_path, "one", fresh=False).steps[0].macs_share == 0.5
    assert PruningStore(tmp_path, "one", fresh=True).steps == []
    assert [len(PruningStore(tmp_path, name, fresh=False).steps) for name in ("one", "other")] == [0, 1]


LOST = {
    "log": lambda run: (run / "log.json").write_text('{"fingerprint": 3'),
    "list": lambda run: (run / "log.json").write_text("[]"),
    "steps": lambda run: (run / "log.json").write_text(
        (run / "log.json").read_text().replace('"macs"', '"mac"')
    ),
    "weights": lambda run: (run / "01/model.safetensors").write_bytes(b"x"),
    "description": lambda run: (run / "01/pruning.json").unlink(),
}


@pytest.mark.parametrize("what", LOST)
def test_broken_files_count_as_missing(what, tmp_path):
    model, x, cut = pruned()
    store = PruningStore(tmp_path, "one", fresh=False)
    for share in (0.5, 0.4):
        store.add(a_step(share), cut, x, model)
    (run,) = tmp_path.iterdir()
    LOST[what](run)
    again = PruningStore(tmp_path, "one", fresh=False)
    assert again.steps == []
    again.add(a_step(0.5), cut, x, model)
    assert len(PruningStore(tmp_path, "one", fresh=False).steps) == 1


def test_steps_up_to_a_broken_one_are_kept(tmp_path):
    model, x, cut = pruned()
    store = PruningStore(tmp_path, "one", fresh=False)
    for share in (0.5, 0.4, 0.3):
        store.add(a_step(share), cut, x, model)
    (run,) = tmp_path.iterdir()
    (run / "02/model.safetensors").unlink()
    assert [step.macs_share for step in PruningStore(tmp_path, "one", fresh=False).steps] == [0.5]


def test_a_step_counts_only_once_its_network_is_there(tmp_path, monkeypatch):
    model, x, cut = pruned()
    store = PruningStore(tmp_path, "one", fresh=False)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tpv.pruning.files.checkpoint.put", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.add(a_step(0.5), cut, x, model)
    monkeypatch.undo()
    assert PruningStore(tmp_path, "one", fresh=False).steps == []


def a_network():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)
    ).eval()


def arguments(**changes):
    x = randn(60, 6).float()
    asked = {"target": "params=0.4", "steps": 3, "test": [(x[:20], torch.arange(20) % 3)], "compensate": True}
    return {"model": a_network(), "data": [x[:40], x[40:]]} | asked | changes


class Stops:
    """Progress that is interrupted before step ``at`` ends."""

    def __init__(self, at, what="pruning"):
        self.at, self.what, self.seen = at, what, []

    def __call__(self, what, done, of):
        self.seen.append((what, done))
        if (what, done) == (self.what, self.at):
            raise KeyboardInterrupt


def same(a, b):
    assert [repr(dataclasses.replace(s, seconds=0)) for s in a.steps] == [
        repr(dataclasses.replace(s, seconds=0)) for s in b.steps
    ]
    assert (a.history, a.curves, a.excluded, a.metadata) == (b.history, b.curves, b.excluded, b.metadata)
    state = b.model.state_dict()
    assert list(a.model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in a.model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [{}, {"allocation": "curves", "steps": 2}, {"criterion": tpv.pruning.JBR(), "compensate": False}],
    ids=str,
)
def test_an_interrupted_run_resumes_bit_for_bit(options, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tpv.prune(**arguments(**options), out=tmp_path, progress=Stops(1))
    rest = Stops(99)
    resumed = tpv.prune(**arguments(**options), out=tmp_path, progress=rest)
    assert ("pruning", 0) not in rest.seen
    same(resumed, tpv.prune(**arguments(**options)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "log.json",
        "model.safetensors",
        "pruning.json",
        "steps",
    ]
    x = arguments()["data"][0]
    assert torch.equal(tpv.pruning.load(a_network(), tmp_path)(x), resumed.model(x))
    assert len(list((tmp_path / "steps").glob("0*"))) == len(resumed.steps)
    first = tpv.pruning.load(a_network(), tmp_path / "steps/01")
    assert sum(p.numel() for p in first.parameters()) > sum(p.numel() for p in resumed.model.parameters())
    log = json.loads((tmp_path / "log.json").read_text())
    assert [PruningStep.from_dict(step).params for step in log["steps"]] == [
        step.params for step in resumed.steps
    ]
    assert log["metadata"]["unpruned"]["widths"] == {"0": 12, "2": 10}


def test_an_interrupted_measurement_of_curves_resumes(tmp_path, monkeypatch):
    asked = {"allocation": "curves", "steps": 1}
    measured, real = [], steps.measure_curve
    monkeypatch.setattr(
        steps,
        "measure_curve",
        lambda model, group, *a, **k: measured.append(group.name) or real(model, group, *a, **k),
    )
    with pytest.raises(KeyboardInterrupt):
        tpv.prune(**arguments(**asked), out=tmp_path, progress=Stops(1, "measuring curves"))
    resumed = tpv.prune(**arguments(**asked), out=tmp_path)
    assert sorted(measured) == ["0", "2"]
    same(resumed, tpv.prune(**arguments(**asked)))


def test_a_finished_run_is_not_done_again(tmp_path):
    first = tpv.prune(**arguments(), out=tmp_path)
    seen = Stops(99)
    again = tpv.prune(**arguments(), out=tmp_path, progress=seen)
    same(first, again)
    assert ("pruning", 2) not in seen.seen
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "log.json",
        "model.safetensors",
        "pruning.json",
        "steps",
    ]
    seen = Stops(99)
    tpv.prune(**arguments(), out=tmp_path, progress=seen, fresh=True)
    assert ("pruning", 0) in seen.seen


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (shutil, "copyfile"), (shutil, "rmtree")])
def test_an_interrupt_between_any_two_files_loses_nothing(module, name, tmp_path, monkeypatch):
    asked, real = arguments(steps=2, compensate=False), getattr(module, name)
    whole = tpv.prune(**asked)
    for k in range(100):
        left = list(range(k))

        def stops(*args, left=left, **kwargs):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return real(*args, **kwargs)

        folder = tmp_path / str(k)
        tpv.prune(**asked | {"generator": 1}, out=folder)
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stops)
            with contextlib.suppress(KeyboardInterrupt):
                tpv.prune(**asked, out=folder)
                assert k > 0
                break
        same(tpv.prune(**asked, out=folder), whole)
        assert sorted(p.name for p in folder.iterdir()) == [
            "log.json",
            "model.safetensors",
            "pruning.json",
            "steps",
        ]


STRIDED = a_network()
STRIDED[0].lengths = (1, 2)  # as a convolution's stride, in no weight


CHANGES = {
    "settings": {"model": STRIDED},
    "seed": {"generator": 1},
    "target": {"target": "params=0.3"},
    "costs": {"target": tpv.pruning.Target("params", 0.4, costs=[tpv.pruning.Cost((0, 1), 1.0)])},
    "criterion": {"criterion": tpv.pruning.TPVImportance(probes=2)},
    "data": {"data": list(randn(60, 6, seed=1).float().split(40))},
    "batches": {"data": [randn(60, 6).float()]},
    "test": {"test": None},
    "forward": {"forward": lambda model, batch: model(batch[0] if isinstance(batch, tuple) else batch)},
    "weights": {
        "model": nn.Sequential(
            nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)
        ).eval()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_change_a_number_does_not_resume(change, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tpv.prune(**arguments(), out=tmp_path, progress=Stops(2))
    seen = Stops(99)
    tpv.prune(**arguments(**CHANGES[change]), out=tmp_path, progress=seen)
    assert ("pruning", 0) in seen.seen
    assert len(list(tmp_path.glob("unfinished-*"))) == 1, "the other run is lost"


def scaled(by):
    return lambda out: out * by


def test_functions_that_no_file_defines(monkeypatch):
    names = {"__name__": "typed"}
    exec("f = lambda out: out\ng = lambda out: -out", names)
    module = types.ModuleType("typed")
    module.__file__ = "<stdin>"
    monkeypatch.setitem(sys.modules, "typed", module)
    assert told(names["f"]) == told(names["f"]) != told(names["g"])


def test_arguments_as_text_are_the_same_in_every_process():
    tp = pytest.importorskip("torch_pruning")
    for make in (
        lambda: tp.importance.MagnitudeImportance(p=1),
        lambda: tpv.pruning.JBR(),
        lambda: {"a": [randn(3), (None, 1.5)]},
    ):
        assert told(make()) == told(make())
        assert " at 0x" not in told(make())
    assert told(tp.importance.MagnitudeImportance(p=1)) != told(tp.importance.MagnitudeImportance(p=2))
    assert told(scaled(1)) == told(scaled(1)) != told(scaled(2))
    assert (
        len(
            {
                told(f)
                for f in (
                    lambda out: out[0],
                    lambda out: out[1],
                    lambda out, i=1: out[i],
                    lambda out, i=2: out[i],
                )
            }
        )
        == 4
    )
    assert told(functools.partial(pow, 2)) != told(functools.partial(pow, 3))
    loop = [1]
    loop.append(loop)
    assert told(loop) == "(1, …)"


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def test_a_result_saves_itself(tmp_path):
    result = tpv.prune(**arguments(allocation="curves", steps=1))
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
        dataclasses.replace(result, origin=None).save(tmp_path)


def made_by_hand(*steps, **metadata):
    return tpv.pruning.PruningResult(
        chain(), steps, [], {}, {"stem": "ignored", "norm": "ignored", "x": "has a single channel"}, metadata
    )


UNPRUNED = {"accuracy": {"value": 0.95, "stderr": 0.01, "mc_stderr": 0.0}, "widths": {"0": 7, "2": 6}}


def test_a_result_as_text():
    steps = [a_step(share, moved_test=estimate(2 * share), accuracy=estimate(share)) for share in (0.8, 0.5)]
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
    changes = dict.fromkeys(("predicted", "cut", "moved", "moved_test", "accuracy"), long)
    names = {f"layer{i}.of.a.long.name": "of a reason that takes many words, " * 4 for i in range(9)}
    result = dataclasses.replace(made_by_hand(a_step(0.5, **changes), unpruned=UNPRUNED), excluded=names)
    assert "1.23e-09" in str(result)
    assert max(map(len, str(result).splitlines())) <= 80
    spelt_out = (
        "TPVImportance(probes=1, members='consumers', squares='joint', output='logits', interactions=True)"
    )
    assert spelt_out.split() == str(made_by_hand(criterion=spelt_out)).split()[:5], "broken inside a word"


def test_a_result_as_a_table():
    pytest.importorskip("pandas")
    frame = made_by_hand(a_step(0.8, accuracy=estimate(0.9)), a_step(0.5)).to_pandas()
    assert list(frame.index) == [1, 2]
    assert frame.index.name == "step"
    assert frame.loc[2, "moved"] == 0.5
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
    left, _ = made_by_hand(*(a_step(share, moved_test=estimate(1 - share)) for share in (1.0, 0.5))).plot()
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
