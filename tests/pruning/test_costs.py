"""Multiply-accumulates and parameters by module, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from cifar10_resnet20 import CifarResNet
from torch import nn
from torch.nn import functional as F

from tpv.common.errors import TPVError
from tpv.model.costs import module_macs, parameters
from tpv.testing import assert_unchanged


def test_resnet20() -> None:
    model = CifarResNet().eval()
    macs = module_macs(model, torch.zeros(2, 3, 32, 32))
    assert sum(macs.values()) == 40_551_040
    assert macs["conv1"] == 27 * 16 * 1024
    assert macs["layer2.0.conv1"] == 9 * 16 * 32 * 256
    assert macs["linear"] == 640
    assert list(macs) == [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counts = parameters(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert (counts["layer3.2.conv2"], counts["layer3.2.bn2"], counts["linear"]) == (9 * 64 * 64, 128, 650)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 5, 5), 9 * 8 * 25),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 5, 5), 9 * 2 * 12 * 25),
        (nn.Conv2d(3, 4, 3, stride=2, bias=False), (3, 9, 9), 9 * 3 * 4 * 16),
        (nn.Conv1d(4, 6, 5), (4, 20), 5 * 4 * 6 * 16),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 8 * 2 * 3 * 27),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 5, 5), 9 * 3 * 4 * 25),
        (nn.Linear(6, 7), (6,), 42),
        (nn.Linear(6, 7), (5, 6), 5 * 42),
        (nn.LSTM(4, 8, num_layers=2, batch_first=True), (5, 4), 5 * 4 * 8 * (4 + 8 + 8 + 8)),
        (nn.GRU(4, 8, batch_first=True), (5, 4), 5 * 3 * 8 * (4 + 8)),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (5, 8),
            5 * 4 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer, shape, macs) -> None:
    for examples in (1, 2, 5):
        found = module_macs(nn.Sequential(nn.Identity(), layer), torch.ones(examples, *shape))
        assert sum(found.values()) == macs
        assert all(name.startswith("1") for name in found)


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weights = weights

    def forward(self, x):
        x = self.project(x @ torch.ones(8, 8))
        x, _ = self.attend(x, x, x, need_weights=self.weights)
        return F.scaled_dot_product_attention(x, x, x) @ torch.ones(8)


@pytest.mark.parametrize("weights", [False, True])
def test_what_runs_outside_of_children_counts_for_their_parent(weights) -> None:
    macs = module_macs(Attention(weights), torch.ones(3, 5, 8))
    assert macs == {"": 5 * 64 + 2 * 25 * 8 + 5 * 8, "project": 5 * 64, "attend": 5 * 4 * 64 + 2 * 25 * 8}


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(3, 4, 5)

    def forward(self, x):
        return self.product(x, x.new_ones(len(x), 4))


def test_bilinear() -> None:
    assert module_macs(Bilinear(), torch.ones(2, 3)) == {"product": 60}


class Tied(nn.Module):
    """A layer under two names, called twice, the second time inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Sequential(self.first, nn.Linear(4, 2))
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x):
        return self.second(self.head(self.first(x)))


def test_shared_modules_and_parameters() -> None:
    assert module_macs(Tied(), torch.ones(2, 4)) == {"first": 32, "second.1": 8, "head": 16}
    assert parameters(Tied()) == {"first": 20, "second.1": 10}


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return F.relu(x @ self.weight)


def test_a_weight_of_the_model_itself() -> None:
    assert module_macs(Bare(), torch.ones(2, 3)) == {"": 12}
    assert parameters(Bare()) == {"": 12}


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
        max_position_embeddings=16,
    )
    model = transformers.BertForSequenceClassification(config)
    batch = {
        "input_ids": torch.ones(2, 6, dtype=torch.long),
        "attention_mask": torch.ones(2, 6),
        "labels": torch.zeros(2),
    }
    macs = module_macs(model, batch)
    layer = "bert.encoder.layer.1."
    assert macs[layer + "attention.self.query"] == 6 * 64
    assert macs[layer + "attention.self"] == 2 * 36 * 8
    assert macs[layer + "intermediate.dense"] == 6 * 8 * 16
    assert macs["classifier"] == 16
    assert sum(macs.values()) == 2 * (6 * 4 * 64 + 2 * 36 * 8 + 2 * 6 * 8 * 16) + 64 + 16


class Counting(nn.Module):
    """BatchNorm in training mode, a hook, and a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.layers[0].register_forward_hook(lambda module, args, out: 2 * out)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layers(x)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training) -> None:
    model = Counting().train(training)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with assert_unchanged(model):
        assert module_macs(model, (torch.ones(4, 3), torch.zeros(4))) == {"layers.0": 12}
    with assert_unchanged(model), pytest.raises(RuntimeError, match="shapes"):
        module_macs(model, torch.ones(4, 5))
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


def test_batches_of_another_form() -> None:
    batch = {"left": torch.ones(3, 4), "right": torch.ones(3, 4)}
    macs = module_macs(
        Tied(), batch, forward=lambda model, b: model(b["left"] + b["right"]) @ torch.ones(2, 7)
    )
    assert macs == {"": 14, "first": 32, "second.1": 8, "head": 16}


def test_what_is_refused() -> None:
    with pytest.raises(TPVError, match=r"model must be a torch\.nn\.Module, got str"):
        module_macs("resnet", torch.ones(1))
    with pytest.raises(TPVError, match=r"model must be a torch\.nn\.Module, got str"):
        parameters("resnet")
    with pytest.raises(TPVError, match="holds no tensor with a batch axis"):
        module_macs(nn.Linear(3, 3), {"text": "a"})
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(TPVError, match="layers cannot be distinguished"):
        module_macs(nn.Sequential(scripted), torch.ones(1, 3))
