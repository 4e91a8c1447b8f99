"""The formulas of the pruning baselines that are ours, and the damage that they are compared with."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cifar10_resnet20 import BasicBlock
from torch import nn

pytest.importorskip("torch_pruning")

from experiments.pruning import first_order, shipped
from experiments.pruning.baselines import CRITERIA
from experiments.pruning.calibration import Calibration, predictions
from experiments.pruning.damage import root_names, true_damage
from experiments.pruning.members import groups
from experiments.pruning.ranks import scores, spearman
from experiments.pruning.whc import whc
from tpv.pruning import replace_padding_shortcuts


class Tiny(nn.Module):
    """Convolutions and BatchNorm, and a flattened linear layer of which every channel takes four columns."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.hidden, self.linear = nn.Conv2d(4, 3, 2, stride=2), nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.bn(self.conv1(x)))))
        return self.linear(F.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """A block that doubles the channels, with a padding shortcut written as a convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.block, self.linear = BasicBlock(4, 8, 2), nn.Linear(8, 3)
        replace_padding_shortcuts(self, torch.randn(1, 2, 4, 4))

    def forward(self, x):
        return self.linear(self.block(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


def trained_looking(kind):
    torch.manual_seed(0)
    model = kind().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for t in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(t)
    return model


@pytest.fixture
def model():
    return trained_looking(Tiny)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10, 2, 4, 4, generator=generator, dtype=torch.float64)
    return Calibration(images, torch.randint(3, (10,), generator=generator))


@pytest.fixture(autouse=True)
def _batches_of_five(monkeypatch):
    monkeypatch.setattr("experiments.pruning.calibration.BATCH", 5)
    monkeypatch.setattr(shipped, "BATCH", 8)


def channel_terms(model, scalar):
    """Σ w·∂scalar of the channels of conv1, one row for each of conv1, bn and conv2."""
    named = dict(model.named_parameters())
    g = {
        n: p.detach() * d
        for (n, p), d in zip(named.items(), torch.autograd.grad(scalar, list(named.values())), strict=True)
    }
    rows = []
    for c in range(4):
        rows.append(
            [
                g["conv1.weight"][c].sum() + g["conv1.bias"][c],
                g["bn.weight"][c] + g["bn.bias"][c],
                g["conv2.weight"][:, c].sum(),
            ]
        )
    return torch.tensor(rows, dtype=torch.float64).T


def scored(name, model, data):
    return scores(CRITERIA[name](model, data), model, data.images)


def score(name, model, data, root="conv1"):
    return scored(name, model, data)[root]


@pytest.mark.parametrize("name", ["JC", "JBR"])
def test_jc_and_jbr_are_as_published(name, model, data):
    labels = data.labels if name == "JC" else model(data.images).argmax(1)
    expected = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(data.images.split(5), labels.split(5), strict=True):
        f = model(x)
        m = (f.softmax(1) - F.one_hot(y, 3)).detach()
        expected += channel_terms(model, (m * f).sum(1).mean()).square().sum(0) / 2
    assert torch.allclose(score(name, model, data), expected, rtol=1e-10)


def test_the_pseudo_labels_stay_those_of_the_unpruned_network(model, data):
    criterion = CRITERIA["JBR"](model, data)
    before = predictions(model, data.images)
    with torch.no_grad():
        model.linear.bias.copy_(torch.tensor([9.0, -9.0, 0.0]))
    assert not torch.equal(before, predictions(model, data.images))
    criterion.refresh(model)
    expected = first_order.FirstOrder(data.images, before, first_order.mean_square)
    expected.refresh(model)
    for group in groups(model, data.images):
        assert torch.equal(criterion(group), expected(group))


def test_taylor_counts_batchnorm(model, data):
    expected = channel_terms(model, F.cross_entropy(model(data.images), data.labels)).abs().sum(0)
    assert torch.allclose(score("Taylor with BN", model, data), expected, rtol=1e-10)


def test_columns_of_a_flattened_channel_are_summed_first(model, data):
    loss = F.cross_entropy(model(data.images), data.labels)
    weights = [model.conv2.weight, model.conv2.bias, model.hidden.weight]
    out, bias, into = (w * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True))
    expected = (out.flatten(1).sum(1) + bias).abs() + into.view(5, 3, 4).sum((0, 2)).abs()
    assert torch.allclose(score("Taylor with BN", model, data, "conv2"), expected, rtol=1e-10)


def test_whc():
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]])
    expected = [5 * 5, 10 * 5, 5 * 5 + 5 * 10]  # the first two are parallel, the third is orthogonal to both
    assert whc(rows).tolist() == pytest.approx(expected)


def test_whc_of_a_group_is_that_of_filters_and_channels(model, data):
    expected = whc(model.conv1.weight.flatten(1)) + whc(model.conv2.weight.transpose(0, 1).flatten(1))
    assert torch.allclose(score("WHC", model, data), expected)
    flattened = whc(model.conv2.weight.flatten(1)) + whc(
        model.hidden.weight.view(5, 3, 4).transpose(0, 1).flatten(1)
    )
    assert torch.allclose(score("WHC", model, data, "conv2"), flattened)


def test_the_corrected_hessian_averages_every_example(model, data):
    weights = (model.conv1.weight, model.bn.weight, model.conv2.weight)
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(10):
        loss = F.cross_entropy(model(data.images), data.labels, reduction="none")[i]
        out, scale, into = (
            w.square() * g.square() / 10
            for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)
        )
        expected += out.flatten(1).sum(1) + scale + into.sum((0, 2, 3))
    assert torch.allclose(score("Hessian corrected", model, data).double(), expected, rtol=1e-5)


def group_of(model, data, root):
    found = groups(model, data.images)
    return found[root_names(model, found).index(root)]


def test_the_shipped_hessian_keeps_the_last_example(model, data):
    import torch_pruning as tp

    reference = tp.importance.GroupHessianImportance(group_reduction="sum", normalizer=None)
    for loss in F.cross_entropy(model(data.images), data.labels, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        reference.accumulate_grad(model)
    expected = reference(group_of(model, data, "conv1"))
    assert torch.allclose(score("Hessian", model, data), expected)


@pytest.mark.parametrize("kind", [Tiny, Residual])
def test_damage_is_that_of_pruning(kind, data):
    model = trained_looking(kind)
    state = copy.deepcopy(model.state_dict())
    for k, group in enumerate(groups(model, data.images)):
        damage = true_damage(model, data.images, group)
        for channel in range(len(damage)):
            pruned = copy.deepcopy(model)
            groups(pruned, data.images)[k].prune([channel])
            expected = (pruned(data.images) - model(data.images)).square().sum(1).mean()
            assert damage[channel].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-15)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_a_frozen_shortcut(name, data):
    model = trained_looking(Residual)
    found = scored(name, model, data)
    assert {root: len(s) for root, s in found.items()} == {"stem": 4, "block.conv1": 8, "block.shortcut": 8}
    assert all(s.isfinite().all() and s.std() > 0 for s in found.values())


def test_spearman_has_an_interval():
    damage = torch.arange(50.0)
    assert (spearman(damage.exp2(), damage, 10).low, spearman(-damage, damage, 10).high) == (1.0, -1.0)
    noisy = spearman(damage + 30 * torch.randn(50, generator=torch.Generator().manual_seed(0)), damage, 100)
    assert 0 < noisy.low < noisy.value < noisy.high < 1
