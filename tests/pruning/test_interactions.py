"""Removing channels by what each adds to those that are gone: the greedy minimum of the damage, measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from cases import randn, seeded
from prunings import prune
from torch import Tensor, nn

import tpv
from tpv.integrations import torch_pruning as integration
from tpv.integrations.torch_pruning import channel_groups
from tpv.model.outputs import as_output
from tpv.pruning import JBR, JC, ChannelGroup, TPVImportance, freeze, score
from tpv.pruning.channels.surgery import remaining, remove
from tpv.pruning.scores.greedy import Elimination, Terms
from tpv.pruning.scores.measurement import OutputChangeMeter

Chosen = dict[str, list[int]]
X = randn(24, 5)
OUTPUTS = 3
EXACT = TPVImportance(probes=OUTPUTS, interactions=True)


class Branches(nn.Module):
    """Two groups of channels read by one layer: what is removed moves the outputs linearly, and is missed jointly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(10, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x).tanh(), self.b(x).tanh()], -1))


def branches() -> Branches:
    torch.manual_seed(3)
    return Branches().double().eval()


def cut(model: nn.Module, groups: list[ChannelGroup], removed: Chosen) -> nn.Module:
    return remove(model, X[:2], groups, removed)


def damage(model: nn.Module, groups: list[ChannelGroup], removed: Chosen, output: str = "logits") -> float:
    return OutputChangeMeter(model, [X], as_output(output), None)(cut(model, groups, removed))[0].value


def greedy(model: nn.Module, groups: list[ChannelGroup], count: int, output: str = "logits") -> Chosen:
    """By measuring every next removal; the last of a group stays."""
    gone: Chosen = {group.name: [] for group in groups}
    for _ in range(count):
        ways = [
            gone | {group.name: [*gone[group.name], c]}
            for group in groups
            for c in range(group.width)
            if c not in gone[group.name] and len(gone[group.name]) < group.width - 1
        ]
        gone = min(ways, key=lambda way: damage(model, groups, way, output))
    return gone


def total(terms: Terms, channels: list[int]) -> float:
    return (terms.before.double() + terms.each[:, channels].double().sum(1)).square().mean().item()


@pytest.mark.parametrize("output", ["logits", "centered"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_goes_is_the_greedy_minimum_of_the_measured_damage(steps: int, output: str) -> None:
    model = branches()
    groups = channel_groups(model, X[:2])
    criterion = TPVImportance(probes=OUTPUTS, output=output, interactions=True)
    costs = [tpv.pruning.Cost((0,), 1), tpv.pruning.Cost((1,), 1)]
    made = prune(model, X, tpv.pruning.Target("channels", 0.4, costs), criterion=criterion, steps=steps)
    for step in made.steps:
        expected = greedy(model, groups, sum(map(len, step.removed.values())), output)
        assert {name: sorted(gone) for name, gone in step.removed.items()} == {
            name: sorted(gone) for name, gone in expected.items()
        }
        assert step.output_change.value == pytest.approx(damage(model, groups, expected, output))
    assert sum(map(len, made.steps[-1].removed.values())) == 6
    alone = prune(
        model,
        X,
        tpv.pruning.Target("channels", 0.4, costs),
        criterion=TPVImportance(OUTPUTS, output=output),
        steps=1,
    )
    assert made.steps[-1].output_change.value < alone.steps[-1].output_change.value, (
        "the network does not show what interactions are for"
    )


@pytest.mark.parametrize("gone", [{}, {"a": [1, 4], "b": [0]}], ids=["unpruned", "drifted"])
def test_terms_of_a_set_are_its_damage_also_after_a_step(gone: Chosen) -> None:
    model = branches()
    groups = channel_groups(model, X[:2])
    now, left = cut(model, groups, gone) if gone else model, remaining(groups, gone)
    terms = score(now, X, left, EXACT, frozen=freeze(model, X, EXACT)).terms
    assert total(terms, []) == pytest.approx(damage(model, groups, gone), rel=1e-5)
    channels = [
        (group.name, c) for group in groups for c in range(group.width) if c not in gone.get(group.name, [])
    ]
    for chosen in ([0], [0, 2], [1, 3, 5], [2, 3, 6]):
        more = {
            group.name: [
                *gone.get(group.name, []),
                *(c for n, c in (channels[i] for i in chosen) if n == group.name),
            ]
            for group in groups
        }
        assert total(terms, chosen) == pytest.approx(damage(model, groups, more), rel=1e-5)


def test_the_order_adds_up_to_the_damage_of_everything_that_went() -> None:
    terms = Terms(randn(50, 7).float(), randn(50, seed=1).float())
    elimination = Elimination(terms.each.square().mean(0), terms)
    gone: list[int] = []
    while (channel := elimination.lowest()) is not None:
        ways = {c: total(terms, [*gone, c]) for c in range(7) if c not in gone}
        assert channel == min(ways, key=ways.__getitem__)
        assert elimination.added()[channel].item() == pytest.approx(
            ways[channel] - total(terms, gone), abs=1e-5
        )
        elimination.remove(channel)
        gone.append(channel)
    assert sorted(gone) == list(range(7))


def cancelling() -> nn.Module:
    """Three channels: the second is missed a little more than the first, in the other direction; the third in one of its own."""
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double().eval()
    first = randn(5, seed=1)
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([first, first, first]))
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([[1.0, -1.2, 0.0], [0.0, 0.0, 1.1]]))
        model[1].bias.zero_()
    return model


@pytest.mark.parametrize("steps", [1, 2])
def test_two_channels_that_cancel_go_together(steps: int) -> None:
    target = tpv.pruning.Target("channels", 0.34, [tpv.pruning.Cost((0,), 1)])
    pairs = {
        interactions: prune(
            cancelling(), X, target, criterion=TPVImportance(2, interactions=interactions), steps=steps
        )
        for interactions in (True, False)
    }
    assert {flag: sorted(made.steps[-1].removed["0"]) for flag, made in pairs.items()} == {
        True: [0, 1],
        False: [0, 2],
    }
    assert pairs[True].steps[-1].output_change.value < pairs[False].steps[-1].output_change.value / 10


def test_the_last_channel_of_a_group_stays_whatever_it_would_add() -> None:
    model = branches()
    with torch.no_grad():
        model.head.weight[:, 6:] = 0  # nothing is missed without any of b
    made = prune(
        model,
        X,
        tpv.pruning.Target("channels", 0.21, [tpv.pruning.Cost((0,), 1), tpv.pruning.Cost((1,), 1)]),
        steps=1,
    )
    assert {name: len(gone) for name, gone in made.steps[-1].removed.items()} == {"a": 5, "b": 3}


@pytest.mark.parametrize(
    "criterion",
    [EXACT, TPVImportance(2, interactions=True), JBR(interactions=True), JC(interactions=True)],
    ids=repr,
)
def test_batches_and_chunks_do_not_matter(criterion: Any) -> None:
    model, labels = branches(), torch.arange(len(X)) % OUTPUTS
    groups = channel_groups(model, X[:2])
    now, left = cut(model, groups, {"a": [2]}), remaining(groups, {"a": [2]})

    def found(sizes: list[int], chunk_size: int | None) -> tuple[Tensor, Tensor]:
        data = list(zip(X.split(sizes), labels.split(sizes), strict=True))
        terms = score(
            now, data, left, criterion, frozen=freeze(model, data, criterion), chunk_size=chunk_size
        ).terms
        rows = torch.cat([terms.before.unsqueeze(1), terms.each], 1).double()
        return rows.T @ rows / len(rows), Elimination(terms.each.square().mean(0), terms).order()[0]

    moments, order = found([24], None)
    drawn = criterion.probes < OUTPUTS and isinstance(
        criterion, TPVImportance
    )  # at random, in the order of the batches
    for sizes, chunk_size in (
        ([24], 5),
        ([24], 1),
        *(() if drawn else (([7, 16, 1], None), ([7, 16, 1], 3))),
    ):
        again, same_order = found(sizes, chunk_size)
        assert torch.allclose(again, moments, rtol=1e-4, atol=1e-6)
        assert torch.equal(same_order, order)


def test_scores_are_the_mean_squares_of_the_terms_that_count() -> None:
    model = branches()
    groups = channel_groups(model, X[:2])
    criterion = JBR(confidence=0.45, interactions=True)
    frozen = freeze(model, X, criterion)
    counted = torch.cat(list(frozen.labels)) >= 0
    assert 0 < counted.sum() < len(X)
    now, left = cut(model, groups, {"b": [1]}), remaining(groups, {"b": [1]})
    found = score(now, X, left, criterion, frozen=frozen, chunk_size=5)
    assert len(found.terms.each) == len(found.terms.before) == counted.sum()
    values = torch.cat([group.value for group in found.values()])
    assert torch.allclose(found.terms.each.double().square().mean(0), values, rtol=1e-5)
    f, now_f = model(X)[counted], now(X)[counted]
    m = now_f.softmax(1) - torch.nn.functional.one_hot(f.argmax(1), OUTPUTS)
    assert torch.allclose(found.terms.before.double(), (m * (f - now_f)).sum(1), atol=1e-6)


@pytest.mark.parametrize("output", ["logits", "centered", "probabilities", "kl"])
def test_what_has_moved_is_in_the_units_of_the_output(output: str) -> None:
    model = branches()
    groups = channel_groups(model, X[:2])
    criterion = TPVImportance(OUTPUTS, output=output, interactions=True)
    with torch.no_grad():
        model.head.weight.mul_(0.05)  # small movements, in which all units are squares
    gone = {"a": [0, 3], "b": [2]}
    terms = score(
        cut(model, groups, gone), X, remaining(groups, gone), criterion, frozen=freeze(model, X, criterion)
    ).terms
    assert total(terms, []) == pytest.approx(damage(model, groups, gone, output), rel=0.03)
    more = {"b": [2, 0], "a": [0, 3, 1]}
    assert total(terms, [0, 3]) == pytest.approx(damage(model, groups, more, output), rel=0.03)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def test_padding_neither_moves_nor_is_missed() -> None:
    torch.manual_seed(0)
    model = Tokens().double().eval()
    x, mask = randn(6, 3, 4), torch.ones(6, 3, dtype=torch.long)
    mask[:, 2] = 0
    criterion = TPVImportance(probes=100, interactions=True)
    groups = channel_groups(model, {"x": x[:2], "attention_mask": mask[:2]})
    now = remove(model, {"x": x[:2], "attention_mask": mask[:2]}, groups, {"up": [5]})

    def moments(batch: dict[str, Tensor]) -> Tensor:
        terms = score(
            now, [batch], remaining(groups, {"up": [5]}), criterion, frozen=freeze(model, [batch], criterion)
        ).terms
        rows = torch.cat([terms.before.unsqueeze(1), terms.each], 1).double()
        return rows.T @ rows / len(rows)

    padded = moments({"x": x, "attention_mask": mask})
    assert torch.allclose(padded, moments({"x": x[:, :2], "attention_mask": mask[:, :2]}), rtol=1e-5)
    assert not torch.allclose(padded, moments({"x": x, "attention_mask": torch.ones_like(mask)}), rtol=0.1)


@pytest.mark.parametrize("iterative", [1, 3])
@pytest.mark.parametrize("build", [branches, cancelling], ids=["branches", "cancelling"])
def test_a_pruner_of_torch_pruning_takes_the_greedy_minimum(
    build: Callable[[], nn.Module], iterative: int
) -> None:
    model, pruned = build(), build()
    groups = channel_groups(model, X[:2])
    imp = integration.TPVGroupImportance(X, probes=OUTPUTS, interactions=True)
    head = list(pruned.children())[-1]
    pruner = tp.pruner.BasePruner(
        pruned,
        X[:2],
        imp,
        global_pruning=True,
        pruning_ratio=0.6,
        max_pruning_ratio=0.9,
        iterative_steps=iterative,
        ignored_layers=[head],
    )
    for _ in range(iterative):
        pruner.step()
        count = sum(group.width for group in groups) - sum(
            m.out_features for m in pruned.children() if m is not head
        )
        assert (pruned(X) - model(X)).square().sum(1).mean().item() == pytest.approx(
            damage(model, groups, greedy(model, groups, count))
        )
    assert count > 1


def test_importances_are_told_apart_although_the_damage_falls() -> None:
    """What undoes earlier damage adds less than nothing; the order of removal must still be readable from the numbers."""
    terms = Terms(torch.tensor([[-1.0, -1.0, -0.5, -0.5]]), torch.tensor([9.0]))
    group = tpv.pruning.GroupScores(terms.each.square().mean(0).double(), torch.zeros(4), 1.0)
    [found] = integration._distinct(tpv.pruning.ChannelScores({"g": group}, 1.0, {}, terms))
    assert found.argsort().tolist() == Elimination(group.value, terms).order()[0].tolist()
    assert found.unique().numel() == 4


def test_random_networks_do_not_do_better_without() -> None:
    """Over many networks: the set that goes jointly moves the predictions less than the channels that do least alone."""
    ratios = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, OUTPUTS)).double().eval()
        x = torch.randn(40, 5, generator=seeded(seed)).double()
        joint, alone = (
            prune(model, x, "params=0.5", criterion=TPVImportance(OUTPUTS, interactions=flag), steps=1)
            .steps[-1]
            .output_change.value
            for flag in (True, False)
        )
        ratios.append(joint / alone)
    assert max(ratios) < 1.05
    assert sum(ratios) / len(ratios) < 0.8
