"""Pruning as users call it: targets, numbers that agree with what was cut, and what must not change."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from cases import randn, settled
from cifar10_resnet20 import CifarResNet
from prunings import prune
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tpv
from tpv.common.errors import TPVError
from tpv.integrations.torch_pruning import channel_groups
from tpv.model.outputs import as_output
from tpv.pruning import JBR, JC, Cost, PruningResult, Target, TPVImportance, module_macs
from tpv.pruning.channels.candidates import verified
from tpv.pruning.channels.conversion import channel_group
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import masks, remaining, remove
from tpv.pruning.channels.tracing import all_groups, trace
from tpv.pruning.scores.measurement import OutputChangeMeter, predict
from tpv.pruning.widths.budget import Budget
from tpv.pruning.widths.selection import by_curves, by_ranking, interpolated, uniformly
from tpv.testing import assert_unchanged

IMAGES = randn(32, 3, 8, 8).float()


class Block(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(True),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        h = 3 * inputs
        self.seq = nn.Sequential(
            nn.Conv2d(inputs, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(True),
            nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False), nn.BatchNorm2d(h), nn.ReLU6(True),
            nn.Conv2d(h, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.seq(x) if self.residual else self.seq(x)


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(True), Inverted(6, 6, 1), Inverted(6, 8, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 5),
    )  # fmt: skip


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(14, 10, 3, padding=1),
        )
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1).relu()).relu().mean((2, 3)))


def vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=5,
        )
    )


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=5,
        )
    )


def sentences() -> list[dict[str, Tensor]]:
    ids = torch.randint(1, 30, (24, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(24, 7, dtype=torch.long)
    mask[::2, 5:] = 0
    labels = torch.arange(24) % 5
    return [
        {"input_ids": ids[s], "attention_mask": mask[s], "labels": labels[s]}
        for s in (slice(0, 10), slice(10, 24))
    ]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet": (resnet, lambda: IMAGES),
    "vgg": (vgg, lambda: IMAGES),
    "mobile": (mobile, lambda: IMAGES),
    "grouped": (grouped, lambda: IMAGES),
    "group norm": (group_norm, lambda: IMAGES),
    "transposed": (transposed, lambda: IMAGES),
    "concat": (Concatenated, lambda: IMAGES),
    "vit": (vit, lambda: [{"pixel_values": IMAGES[:20]}, {"pixel_values": IMAGES[20:]}]),
    "bert": (bert, sentences),
}


def make(name: str) -> tuple[nn.Module, Any]:
    """In float32, with slopes of norms above 0, so that nothing dies."""
    torch.manual_seed(0)
    build, data = MODELS[name]
    model = settled(build()).float()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.abs_().add_(0.5)
    return model, data()


def first(data: Any) -> Any:
    return data[:2] if isinstance(data, Tensor) else {key: value[:2] for key, value in data[0].items()}


def found(model: nn.Module, data: Any) -> list[ChannelGroup]:
    return [channel_group(group) for group in all_groups(trace(model, first(data)))]


def counts(model: nn.Module, data: Any) -> tuple[int, int]:
    return sum(module_macs(model, first(data)).values()), sum(p.numel() for p in model.parameters())


WAYS = [
    {"target": "macs=0.5", "steps": 3},
    {"target": "params=0.6", "compensate": True, "recalibrate": True, "steps": 2},
    {"target": "macs=0.6", "allocation": "uniform", "steps": 1},
    {"target": "params=0.55", "allocation": "curves", "compensate": True},
]


@pytest.mark.parametrize("way", WAYS, ids=["global", "compensate", "uniform", "curves"])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_of_the_pruned_network(name, way) -> None:
    model, data = make(name)
    with assert_unchanged(model):
        result = prune(model, data, **way)
    last = result.steps[-1]
    assert (last.macs, last.params) == counts(result.model, data)
    macs, params = counts(model, data)
    assert (last.macs_share, last.params_share) == pytest.approx((last.macs / macs, last.params / params))
    unit, keep = way["target"].split("=")
    share = {"macs": last.macs_share, "params": last.params_share}[unit]
    assert share <= float(keep)
    widths = result.metadata["unpruned"]["widths"]
    assert all(len(set(last.removed[g])) == len(last.removed[g]) < width for g, width in widths.items())
    if way.get("allocation") != "uniform":  # which may take one channel of every group at a time
        assert any(one_more(model, data, last.removed, g, unit) > float(keep) for g in widths)
    for before, after in zip(result.steps, result.steps[1:], strict=False):
        assert all(set(before.removed[g]) <= set(after.removed[g]) for g in widths)
        assert after.macs < before.macs
    measured = OutputChangeMeter(
        model, list(data.split(256)) if isinstance(data, Tensor) else data, as_output("logits"), None
    )(result.model)[0]
    assert measured.value == pytest.approx(last.output_change.value)


def one_more(model: nn.Module, data: Any, removed: dict[str, list[int]], group: str, unit: str) -> float:
    """The share with one channel of this group more."""
    if not removed[group]:
        return math.inf
    groups = [g for g in found(model, data) if g.name in removed]
    fewer = removed | {group: removed[group][:-1]}
    pruned = remove(model, first(data), groups, fewer)
    index = ["macs", "params"].index(unit)
    return counts(pruned, data)[index] / counts(model, data)[index]


@pytest.mark.parametrize("name", MODELS)
def test_groups_that_remain_are_those_of_a_new_trace(name) -> None:
    model, data = make(name)
    groups = [g for g in found(model, data) if "attention" not in g.name]
    removed = {g.name: random.Random(1).sample(range(g.width), g.width // 3) for g in groups}
    pruned = remove(model, first(data), groups, removed)
    again = {g.name: g for g in found(pruned, data)}
    for group in remaining(groups, removed):
        new = again[group.name]
        assert (group.width, group.tied) == (new.width, new.tied)
        for mine, theirs in zip(
            *(sorted(g.members, key=lambda m: (m.module, m.role)) for g in (group, new)), strict=True
        ):
            assert (mine.module, mine.role) == (theirs.module, theirs.role)
            assert dict(zip(mine.index.tolist(), mine.channel.tolist(), strict=True)) == dict(
                zip(theirs.index.tolist(), theirs.channel.tolist(), strict=True)
            )


# predictions


@pytest.mark.parametrize("name", ["vgg", "grouped", "concat", "transposed", "bert"])
def test_prediction_is_that_of_a_displacement(name) -> None:
    model, data = make(name)
    groups = [g for g in found(model, data) if "attention" not in g.name]
    data = list(data.split(20)) if isinstance(data, Tensor) else data
    removed = {g.name: [0, g.width - 1] for g in groups}
    without = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, mask in masks(model, groups, removed).items():
        without[name] *= mask
    expected = tpv.estimate(model, data, tpv.Displacement(without))
    assert predict(model, data, groups, removed, "logits", None).first_order == pytest.approx(expected.value)


class LinearInReaders(nn.Module):
    """Only the weights that read the pruned channels are between them and the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("output", ["logits", "centered"])
def test_first_order_is_exact_where_the_model_is_linear(output) -> None:
    torch.manual_seed(0)
    model = LinearInReaders().double().eval()
    result = prune(model, randn(50, 4), "params=0.5", steps=3, criterion=TPVImportance(output=output))
    for step in result.steps:
        assert step.predicted.value == pytest.approx(step.output_change_before_repair.value, rel=1e-9)
        assert step.predicted.stderr == pytest.approx(step.output_change_before_repair.stderr, rel=1e-6)
        assert step.linearity == pytest.approx(0, abs=1e-12)
        assert step.output_change == step.output_change_before_repair


def test_padded_positions_count_in_neither() -> None:
    class Tokens(LinearInReaders):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Tokens().double().eval(), randn(12, 6, 4)
    mask = (torch.arange(6) < torch.arange(12).remainder(5).add(2).unsqueeze(1)).long()
    batches = [{"x": x[s], "attention_mask": mask[s]} for s in (slice(0, 5), slice(5, 12))]
    step = prune(model, batches, "params=0.5", steps=1, compensate=True).steps[-1]
    assert step.predicted.value == pytest.approx(step.output_change_before_repair.value, rel=1e-9)
    assert step.output_change.value < step.output_change_before_repair.value


# what must not change


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["tracing", "measuring curves", "pruning", "re-fitting"])
def test_nothing_changes_when_it_is_interrupted(error, what) -> None:
    model, data = make("resnet")
    model[3].conv1.weight.requires_grad_(False)

    def stop(event: tpv.ProgressEvent) -> None:
        if event.stage.endswith(what):
            torch.rand(1)
            raise error

    before = torch.get_rng_state()
    with assert_unchanged(model), pytest.raises(error):
        prune(
            model,
            DataLoader(TensorDataset(data), 8, shuffle=True),
            allocation="curves",
            compensate=True,
            progress=stop,
        )
    assert torch.equal(before, torch.get_rng_state())


def test_interrupted_inside_a_curve(monkeypatch) -> None:
    model, data = make("vgg")
    calls = 0

    def interrupted(self: OutputChangeMeter, pruned: nn.Module) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            assert pruned is not model
            raise KeyboardInterrupt
        return original(self, pruned)

    original = OutputChangeMeter.__call__
    monkeypatch.setattr(OutputChangeMeter, "__call__", interrupted)
    with assert_unchanged(model), pytest.raises(KeyboardInterrupt):
        prune(model, data, allocation="curves", compensate=True)
    assert calls == 3


def test_flags_hooks_and_frozen_parameters_are_carried_over() -> None:
    model, data = make("resnet")
    model[0].weight.requires_grad_(False)
    model[3].bn1.bias.requires_grad_(False)
    model[7].register_forward_hook(lambda module, args, output: 2 * output)
    stem = model[0].weight.clone()
    with assert_unchanged(model):
        result = prune(model, data, "macs=0.6", steps=2, compensate=True)
    assert {n: p.requires_grad for n, p in result.model.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert not any(m.training for m in result.model.modules())
    assert len(result.model[7]._forward_hooks) == 1
    assert all(
        len(m._forward_hooks) == len(model.get_submodule(n)._forward_hooks)
        for n, m in result.model.named_modules()
    )
    keep = [
        c
        for c in range(8)
        if c not in next(v for g, v in result.steps[-1].removed.items() if g in ("0", "3.conv2"))
    ]
    assert torch.equal(result.model[0].weight, stem[keep])
    shared = {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    assert not shared
    result.model(data).sum().backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype) -> None:
    model, data = make("vgg")
    step = prune(model.to(dtype), data.to(dtype), "macs=0.6", allocation="curves", compensate=True).steps[-1]
    assert step.output_change.value < step.output_change_before_repair.value
    assert math.isfinite(step.predicted.value)


@pytest.mark.parametrize("criterion", [None, tp.importance.RandomImportance()])
def test_the_same_for_a_seed(criterion) -> None:
    model, data = make("vgg")
    results = []
    for seed in (3, 3, 4):
        torch.rand(1)
        results.append(
            prune(model, data, "macs=0.6", steps=2, compensate=True, generator=seed, criterion=criterion)
        )
    same = [s.removed for s in results[0].steps] == [s.removed for s in results[1].steps]
    assert same
    assert results[0].steps[-1].output_change == results[1].steps[-1].output_change
    if criterion is not None:
        assert [s.removed for s in results[0].steps] != [s.removed for s in results[2].steps]


def test_two_tensors_are_a_labelled_test_set() -> None:
    model, data = make("vgg")
    labels = model(data).argmax(1)
    pair, listed = (
        prune(model, data, "macs=0.7", steps=1, test=t) for t in ((data, labels), [(data, labels)])
    )
    assert pair.steps[-1].accuracy == listed.steps[-1].accuracy
    assert pair.metadata["unpruned"]["accuracy"]["value"] == 1
    with pytest.raises(TPVError, match=r"test=\(inputs, labels\) has 32 inputs and 31 labels"):
        prune(model, data, "macs=0.7", steps=1, test=(data, labels[1:]))
    with pytest.raises(TPVError, match=r"test=: data is a single dict"):
        prune(model, data, "macs=0.7", steps=1, test={"x": data})


def test_loaders_labels_and_accuracy() -> None:
    model, data = make("vgg")
    labels = model(data).argmax(1)
    labels[::4] = (labels[::4] + 1) % 5
    loader = DataLoader(TensorDataset(data, labels), 10, shuffle=True)
    result = prune(model, loader, "macs=0.7", steps=2, test=[(data, labels)], compensate=True)
    assert result.metadata["unpruned"]["accuracy"]["value"] == 0.75
    assert (result.metadata["examples"], result.metadata["test_examples"]) == (32, 32)
    last = result.steps[-1]
    assert last.accuracy is not None
    assert last.accuracy.value == (result.model(data).argmax(1) == labels).double().mean()
    assert last.output_change_test is not None
    assert last.output_change_test.value == pytest.approx(last.output_change.value, rel=1e-4)
    without = prune(model, loader, "macs=0.7", steps=1)
    assert (
        without.steps[-1].accuracy,
        without.steps[-1].output_change_test,
        without.metadata["unpruned"]["accuracy"],
    ) == (None, None, None)
    assert prune(model, loader, "macs=0.7", steps=1, criterion=JC()).steps[-1].macs_share <= 0.7


def test_frozen_labels_are_those_of_the_unpruned_model(monkeypatch) -> None:
    model, data = make("vgg")
    given: list[Any] = []
    original = tpv.pruning.rescoring.score
    monkeypatch.setattr(
        tpv.pruning.rescoring, "score", lambda *a, **k: given.append(k["frozen"]) or original(*a, **k)
    )
    prune(model, data, "macs=0.5", steps=3, criterion=JBR())
    assert len(given) == 3
    assert all(torch.equal(torch.cat(list(frozen.labels)), model(data).argmax(1)) for frozen in given)


@pytest.mark.parametrize(
    "importance",
    [
        tp.importance.GroupMagnitudeImportance(),
        tp.importance.RandomImportance(),
        tp.importance.FPGMImportance(),
    ],
)
def test_importances_of_torch_pruning(importance) -> None:
    model, data = make("resnet")
    result = prune(model, data, "macs=0.6", steps=2, criterion=importance)
    assert result.steps[-1].macs_share <= 0.6
    assert result.metadata["criterion"].startswith(f"{type(importance).__name__}(")


# choosing


class Wide:
    """Groups of given widths and costs in proportion."""

    def __init__(self, *widths: int) -> None:
        self.groups = [ChannelGroup(str(i), w, ()) for i, w in enumerate(widths)]
        costs = (
            Cost((), 5),
            *(Cost((i,), i + 1) for i in range(len(widths))),
            *(Cost((i, i + 1), 2) for i in range(len(widths) - 1)),
        )
        self.costs = Budget("toys", costs, float(sum(c.of(widths) for c in costs)))
        generator = torch.Generator().manual_seed(0)
        self.values = {
            g.name: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in self.groups
        }


def test_ranking_takes_the_lowest_until_the_limit_is_met() -> None:
    toy = Wide(5, 7, 3)
    ranked = sorted(
        (v, i, c)
        for i, g in enumerate(toy.groups)
        for v, c in sorted(zip(toy.values[g.name].tolist(), range(g.width), strict=True))[:-1]
    )
    exact = [g.width - [i for _, i, _ in ranked[:5]].count(j) for j, g in enumerate(toy.groups)]
    for limit in (140, 90, toy.costs.of(exact), 50, 20):
        gone: dict[str, list[int]] = {"0": [], "1": [], "2": []}
        for _, i, c in ranked:
            if toy.costs.of([g.width - len(gone[g.name]) for g in toy.groups]) <= limit:
                break
            gone[str(i)].append(c)
        assert by_ranking(toy.groups, toy.values, {}, toy.costs, limit) == gone
    left = {"0": toy.values["0"][1:], "1": toy.values["1"], "2": toy.values["2"]}
    assert by_ranking(toy.groups, left, {"0": [0]}, toy.costs, 60)["0"][0] == 0


def test_curves_give_the_best_widths_of_all() -> None:
    toy = Wide(5, 4, 3)
    curves = [
        {w: math.exp(-0.7 * (i + 1) * w) - math.exp(-0.7 * (i + 1) * g.width) for w in range(1, g.width + 1)}
        for i, g in enumerate(toy.groups)
    ]
    named = dict(zip("012", curves, strict=True))
    for limit in (100, 70, 45, 30, 16):
        chosen = by_curves(toy.groups, toy.values, named, {}, toy.costs, limit)
        widths = [g.width - len(chosen[g.name]) for g in toy.groups]
        every = [
            (a, b, c)
            for a in curves[0]
            for b in curves[1]
            for c in curves[2]
            if toy.costs.of((a, b, c)) <= limit
        ]
        assert sum(c[w] for c, w in zip(curves, widths, strict=True)) == pytest.approx(
            min(sum(c[w] for c, w in zip(curves, e, strict=True)) for e in every)
        )
        assert all(
            sorted(gone) == sorted(toy.values[n].argsort()[: len(gone)].tolist())
            for n, gone in chosen.items()
        )


def test_between_measured_widths_the_target_is_filled() -> None:
    toy = Wide(20, 30)
    curves = {"0": {1: 9.0, 10: 3.0, 20: 0.0}, "1": {1: 40.0, 15: 2.0, 30: 0.0}}
    assert interpolated(curves["0"], 13) == pytest.approx(2.1)
    for limit in (1000, 700, 222):
        chosen = by_curves(toy.groups, toy.values, curves, {}, toy.costs, limit)
        widths = [g.width - len(chosen[g.name]) for g in toy.groups]
        assert toy.costs.of(widths) <= limit
        wider = [
            [w + (i == j) for j, w in enumerate(widths)]
            for i, most in enumerate((20, 30))
            if widths[i] < most
        ]
        assert wider
        assert all(toy.costs.of(w) > limit for w in wider)
    first = by_curves(toy.groups, toy.values, curves, {}, toy.costs, 700)
    second = by_curves(toy.groups, toy.values, curves, first, toy.costs, 300)
    assert all(set(first[n]) <= set(second[n]) for n in "01")


@pytest.mark.parametrize(
    "choose",
    [
        by_ranking,
        uniformly,
        lambda g, v, r, c, limit: by_curves(
            g, v, {"0": {1: 1.0, 5: 0.0}, "1": {1: 1.0, 4: 0.0}}, r, c, limit
        ),
    ],
)
def test_choices_refused(choose) -> None:
    toy = Wide(5, 4)
    with pytest.raises(
        TPVError, match="one channel left in every group there are still 10 toys of 58, more than 9"
    ):
        choose(toy.groups, toy.values, {}, toy.costs, 9)
    assert {n: len(c) for n, c in choose(toy.groups, toy.values, {}, toy.costs, 10).items()} == {
        "0": 4,
        "1": 3,
    }
    toy.values["1"][2] = math.nan
    with pytest.raises(TPVError, match="the scores of 1 are NaN"):
        choose(toy.groups, toy.values, {}, toy.costs, 30)


def test_own_costs() -> None:
    model, data = make("vgg")
    result = prune(
        model, data, Target("cycles", 0.5, [Cost((0,), 1.0), Cost((1,), 2.0), Cost((2,), 0.5)]), steps=1
    )
    widths = [
        width - len(result.steps[-1].removed[g]) for g, width in result.metadata["unpruned"]["widths"].items()
    ]
    full = list(result.metadata["unpruned"]["widths"].values())
    assert widths[0] + 2 * widths[1] + 0.5 * widths[2] <= 0.5 * (full[0] + 2 * full[1] + 0.5 * full[2])


def test_own_costs_count_the_groups_that_are_left_alone_too() -> None:
    model, data = make("vgg")
    groups = channel_groups(model, data[:2])
    milliseconds = {
        (w, v): 0.5 * w + v for w in range(1, groups[0].width + 1) for v in range(1, groups[1].width + 1)
    }
    target = Target("ms", 0.6, [Cost((0, 1), milliseconds), Cost((2,), 2.0), Cost((0,), 1.0)])
    result = prune(model, data, target, steps=1, ignore=[groups[0].name])
    w = [g.width - len(result.steps[-1].removed.get(g.name, ())) for g in groups]
    full = [g.width for g in groups]
    assert w[0] == full[0]
    assert (
        abs(
            result.steps[-1].cost_share
            - (1.5 * w[0] + w[1] + 2 * w[2]) / (1.5 * full[0] + full[1] + 2 * full[2])
        )
        < 1e-12
    )
    assert "Left of ms: " in str(result)
    assert (
        1.5 * w[0] + w[1] + 2 * w[2]
        <= 0.6 * (1.5 * full[0] + full[1] + 2 * full[2])
        < 1.5 * w[0] + w[1] + 2 * w[2] + 2.5
    )
    with pytest.raises(TPVError, match="has a cost of group 9, and the network has 3"):
        prune(model, data, Target("ms", 0.6, [Cost((9,), 1.0)]), steps=1)


# what is refused or left out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "macs=0.001"}, "the target cannot be met: with one channel left"),
        ({"target": "macs=0.001", "allocation": "curves"}, "the target cannot be met: with one channel left"),
        ({"target": "flops=0.5"}, "give 'macs' or 'params'"),
        ({"target": "half"}, "write the share to keep"),
        ({"target": "macs=1.5"}, "keep must be"),
        ({"ignore": ["x*"]}, "matches no group of channels: there are 8, 4, 0"),
        ({"ignore": ["*"]}, "no channel of the model can be removed"),
        ({"criterion": TPVImportance}, "criterion=.*give tpv.pruning.TPVImportance"),
        ({"criterion": tp.importance.GroupTaylorImportance()}, "Importances that need gradients"),
        ({"criterion": lambda group: None}, "no score for each"),
        ({"allocation": "global "}, "allocation"),
        ({"steps": 0}, "steps"),
        ({"target": 0.5}, "target=0.5: give the share to keep"),
        ({"generator": -1}, r"PruningConfig\(generator=-1\)"),
        ({"curves": {"0": {1: 2.0, 8: 0.0}}}, "curves= are for allocation='curves'"),
        (
            {"allocation": "curves", "curves": {"0": {1: 2.0, 4: 0.0}}},
            r"curves= have widths \[1, 4\] for 0, which has 8 channels",
        ),
        (
            {"allocation": "curves", "curves": {"0": {"1": 2.0, "8": 0.0}}},
            "curves= have widths \\['1', '8'\\] for 0",
        ),
    ],
)
def test_refused(options, sentence) -> None:
    model, data = make("vgg")
    with assert_unchanged(model), pytest.raises(TPVError, match=sentence):
        prune(model, data, **({"target": "macs=0.5", "steps": 1} | options))
    with pytest.raises(TPVError, match="eval"):
        prune(model.train(), data)


@pytest.mark.parametrize("config", [{}, {"steps": 2}])
def test_options_are_a_config(config) -> None:
    with pytest.raises(TPVError, match=r"config=.*: give a tpv\.pruning\.PruningConfig\(\.\.\.\)"):
        tpv.prune(*make("vgg"), config=config)


def test_public_functions_have_few_arguments() -> None:
    """At most 10 for the verb, keyword-only after three, and 8 for all others; results are not made by users."""
    for name in tpv.pruning.__all__:
        public = getattr(tpv.pruning, name)
        if name in ("PruningStep", "PruningResult"):
            continue
        parameters = inspect.signature(public).parameters.values()
        assert len(parameters) <= (10 if name == "prune" else 8), name
    positional = [
        p.name for p in inspect.signature(tpv.prune).parameters.values() if p.kind != p.KEYWORD_ONLY
    ]
    assert positional == ["model", "data", "target"]


def test_ignored_groups_stay() -> None:
    model, data = make("vgg")
    assert prune(model, data, "macs=0.7", steps=1, ignore="8").excluded == {"8": "ignored"}
    result = prune(model, data, "macs=0.7", steps=1, ignore=["[48]"])
    assert result.excluded == {"4": "ignored", "8": "ignored"}
    assert list(result.steps[-1].removed) == ["0"]
    assert (result.model[4].out_channels, result.model[8].out_features) == (12, 16)


class PadsByHand(nn.Module):
    """A block whose shortcut is no module of its own."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.pad = block.shortcut.forward

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.pad(x)).relu()


def padded_by_hand() -> nn.Module:
    model = CifarResNet(8)
    model.layer2[0], model.layer3[0] = PadsByHand(model.layer2[0]), PadsByHand(model.layer3[0])
    return model


class Beside(nn.Module):
    """A wrongly traced network beside one whose norm mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.mixed = padded_by_hand(), group_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(x)[:, :5] + self.mixed(x)


@pytest.mark.parametrize("build", [padded_by_hand, Beside])
def test_wrong_traces_are_refused(build) -> None:
    torch.manual_seed(0)
    model = settled(build()).float()
    x = torch.randn(4, 3, 32, 32)
    with (
        assert_unchanged(model),
        pytest.raises(
            TPVError, match=r"traced graph is wrong at (padded\.)?conv1: .*\.replace_padding_shortcuts"
        ),
    ):
        prune(model, x, "macs=0.8", steps=1)


def test_padding_shortcuts_become_convolutions(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = settled(CifarResNet(8)).float(), torch.randn(4, 3, 32, 32)
    with assert_unchanged(model):
        result = prune(model, x, "macs=0.8", steps=1)
    assert result.metadata["replaced_shortcuts"] == ["layer2.0.shortcut", "layer3.0.shortcut"]
    assert not result.excluded
    assert not result.model.layer2[0].shortcut.weight.requires_grad
    result.save(tmp_path)
    assert torch.equal(tpv.pruning.load(CifarResNet(8), tmp_path)(x), result.model(x))


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.a, self.b = nn.Embedding(12, 8), nn.Linear(8, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.b(torch.tanh(self.a(self.embedding(tokens))))).mean(1)


def test_the_search_for_groups_ends_where_channels_are_rotated() -> None:
    """Torch-Pruning follows the concatenations of rotary embeddings for ever; layers beside them are pruned all the same."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {
        "vocab_size": 13,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, num_hidden_layers=2)).eval()
    result = prune(model, [{"input_ids": torch.arange(30).reshape(6, 5) % 13}], "params=0.9", steps=1)
    assert {name for name in result.metadata["unpruned"]["widths"] if "up_proj" in name} == {
        f"model.layers.{i}.mlp.up_proj" for i in (0, 1)
    }
    assert (
        result.steps[0].params
        == sum(p.numel() for p in result.model.parameters())
        <= 0.9 * sum(p.numel() for p in model.parameters())
    )
    assert set(result.excluded) == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)}
    assert all("rotary" in why for why in result.excluded.values())


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    model, tokens = TiedHead().eval(), torch.randint(0, 12, (20, 5))
    for way in ({}, {"compensate": True}, {"allocation": "curves"}):
        result = prune(model, tokens, "params=0.7", steps=2, **way)
        assert any("are used by other layers too" in why for why in result.excluded.values())
        assert result.model.head.weight is result.model.embedding.weight
        assert list(result.steps[-1].removed) == ["a"]
        assert result.steps[-1].params == counts(result.model, tokens)[1]


def test_verified_group_by_group() -> None:
    model, data = make("bert")
    groups = found(model, data)
    usable, excluded = verified(model, first(data), groups)
    assert all(
        "attention" in name and "does not run without one of its channels" in why
        for name, why in excluded.items()
    )
    assert {g.name for g in usable} | excluded.keys() == {g.name for g in groups}
    assert verified(model, first(data), [])[0] == []


def test_the_result_prints() -> None:
    model, data = make("vgg")
    result = prune(copy.deepcopy(model), data, "macs=0.7", steps=1)
    assert isinstance(result, PruningResult)
    assert "excluded" in repr(result)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.shared(x))
        return self.a(h), self.b(h)


def test_outputs_that_do_not_count_are_told() -> None:
    model, x = TwoHeads().eval(), torch.randn(20, 6)
    with (
        pytest.warns(UserWarning, match="returns 2 tensors, and only the first counts: give forward="),
        contextlib.suppress(TPVError),
    ):
        prune(model, x, "params=0.8", steps=1)
    both = prune(model, x, "params=0.6", steps=1, forward=lambda m, batch: torch.cat(m(batch), 1))
    assert both.steps[-1].params_share <= 0.6
    assert not both.excluded


def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path) -> None:
    model, data = make("vgg")
    labels = torch.full((len(data),), 90)
    for options, sentence in [
        ({"data": torch.full_like(data, torch.nan)}, "the batch holds NaN or infinity"),
        ({"target": "params=0.0001"}, "the target cannot be met"),
        ({"test": [(data, labels)]}, "a test label is 90, and there are 5 classes"),
    ]:
        with pytest.raises(TPVError, match=sentence):
            prune(model, **{"data": data, "out": tmp_path} | options)
        assert not list(tmp_path.iterdir())
