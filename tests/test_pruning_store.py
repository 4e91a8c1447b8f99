"""Pruned networks on disk: the same numbers afterwards, every mismatch told, nothing of another run taken for this one's."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from cases import randn, seeded
from torch import nn

import tpv.pruning
from tpv import TPVError
from tpv.integrations.torch_pruning import channel_groups
from tpv.pruning.compensation import compensate
from tpv.pruning.surgery import kept_outputs, remove


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
    "bfloat16": (lambda: chain().bfloat16(), lambda: [randn(2, 5).bfloat16(), torch.ones(2, dtype=torch.long)], {"2": [3]}),
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
        return tpv.pruning.tracing.call_model(model, example)


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
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in cut.model.named_parameters()}


def test_frozen_parameters_stay_frozen(tmp_path):
    model = built(chain)
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    x = randn(2, 5).float()
    cut = remove(model, x, channel_groups(model, x), {"0": [1], "2": [2]})
    tpv.pruning.save(cut.model, tmp_path, cut.history, x, unpruned=model)
    loaded = tpv.pruning.load(built(chain), tmp_path)
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["0.bias", "2.weight"]


def test_a_bias_that_compensation_added(tmp_path):
    model, x = built(chain), randn(64, 5).float()
    groups, removed = channel_groups(model, x[:2]), {"0": [0, 1, 2], "2": [4]}
    cut = remove(model, x[:2], groups, removed)
    compensate(cut.model, model, x, kept_outputs(groups, removed))
    assert cut.model[2].bias is not None
    tpv.pruning.save(cut.model, tmp_path, cut.history, x[:2], unpruned=model)
    assert json.loads((tmp_path / "pruning.json").read_text())["added_biases"] == ["2"]
    assert torch.equal(tpv.pruning.load(built(chain, 1), tmp_path)(x), cut.model(x))


@pytest.mark.parametrize("kept_with", ["replaced", "as it was"])
@pytest.mark.parametrize("loaded_with", ["replaced", "as it was"])
def test_padding_shortcuts_are_replaced_where_they_were(kept_with, loaded_with, tmp_path):
    model, x = built(Residual), randn(4, 3, 8, 8).float()
    original = built(Residual)
    assert tpv.pruning.shortcuts.replace_padding_shortcuts(model, x) == ["shortcut"]
    cut = remove(model, x, channel_groups(model, x), {"inner": [1, 5], "stem": [0], "outer": [0, 7]})
    tpv.pruning.save(cut.model, tmp_path, cut.history, x, unpruned=model if kept_with == "replaced" else original)
    fresh = built(Residual, 1)
    if loaded_with == "replaced":
        tpv.pruning.shortcuts.replace_padding_shortcuts(fresh, x)
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
    assert torch.equal(tpv.pruning.load(built(Tied, 1), tmp_path, example=Text(), forward=forward)(Text.ids), cut.model(Text.ids))


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
    r"model\.safetensors is broken: ": lambda f: as_bytes(f, "model.safetensors", b"\x08\0\0\0\0\0\0\0not json"),
    r"safetensors is broken: .*": lambda f: as_bytes(f, "model.safetensors", (f / "model.safetensors").read_bytes()[:-1]),
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
    r"^0\.weight of the model is of shape \(8, 5\), and that of the saved one was \(7, 5\) before pruning: ": lambda: nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)
    ),
    r"^the model has no 4\.weight, which the saved one has": lambda: chain()[:4],
    r"^the saved model has no 5\.weight, which this one has": lambda: chain().append(nn.Linear(3, 3)),
    r"^the model has no 2\.weight, ": lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Identity(), nn.ReLU(), nn.Linear(6, 3)),
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
    with pytest.raises(TPVError, match=r"0\.weight of the model is of shape \(5, 5\).*give an unpruned instance"):
        tpv.pruning.load(cut.model, tmp_path)


def test_a_history_of_another_model(tmp_path):
    model, example, cut = pruned()
    for history in ([["nowhere", True, [0]]], [["0", True, [99]]], [["1", True, [0]]], [["0", True, [6]]]):
        tpv.pruning.save(cut.model, tmp_path, history, example, unpruned=model)
        with pytest.raises(TPVError, match=r"cannot be removed from this model|do not fit what is left") as refused:
            tpv.pruning.load(built(chain), tmp_path)
        assert "\n" not in str(refused.value)


def test_nowhere_to_write(tmp_path):
    model, example, cut = pruned()
    (tmp_path / "file").touch()
    with pytest.raises(TPVError, match=r"cannot write to .*file/x \(Not a directory\): choose another folder\.$"):
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
    shutil.rmtree(tmp_path)
