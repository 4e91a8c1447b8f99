"""Scores of single weights are those of the dense Jacobian, and masks do what torch.nn.utils.prune does."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import cifar10_resnet20 as target
import pytest
import test_unchanged
import torch
import torch.nn.functional as F
from cases import CASES, Case, Tied, faults_survived, randn, seeded, settled
from test_resnet20 import real
from torch import Tensor, nn
from torch.nn.utils import prune

import tpv
from tpv._batches import batch_size
from tpv.pruning import JBR, JC, Criterion, TPVImportance, unstructured
from tpv.pruning.places import apply_masks
from tpv.pruning.reliability import spearman, split_half
from tpv.pruning.unstructured import weight_scores
from tpv.pruning.weight_scores import WeightScores
from tpv.testing import assert_unchanged, dense_jacobian

IDS = [case.name for case in CASES]
WEIGHTS = {case.name: case for case in CASES if case.name not in ("data dependent",)}


@dataclass(frozen=True)
class Relative(tpv.DiagonalPerturbation):
    """δ_i of the size of w_i, of independent signs."""

    params: tpv.weights.Patterns = None

    def variance(self, at):
        return {name: w.square() for name, w in at.items()}


class Mixed(nn.Module):
    """Embedding with a padding row, convolution, BatchNorm, linear layers, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.mix = nn.Linear(8, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.other = nn.Linear(4, 9, bias=False)
        self.other.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.conv(self.embedding(tokens).transpose(1, 2)))).mean(2)
        x = torch.tanh(self.mix(x))
        return self.head(x) + self.other(x.square())


def mixed() -> nn.Module:
    torch.manual_seed(2)
    return settled(Mixed())


def tokens(n: int = 6) -> Tensor:
    return torch.randint(0, 9, (n, 5), generator=seeded(3))


def network() -> nn.Module:
    torch.manual_seed(4)
    return settled(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3)))  # fmt: skip


def pictures(n: int = 7) -> Tensor:
    return randn(n, 4, 5, 5, seed=5)


def dense_scores(model: nn.Module, batch: Any, v: Tensor | None = None) -> dict[str, Tensor]:
    """E ‖J_i w_i‖², or E (vᵀJ_i w_i)² with v (N, K)."""
    found = {}
    for name, j in dense_jacobian(model, batch).items():
        along = j if v is None else torch.einsum("nk...,nk->n...", j, v).unsqueeze(1)
        found[name] = along.square().sum(1).mean(0) * model.get_parameter(name).detach().square()
    return found


def assert_scores(found: WeightScores, expected: dict[str, Tensor]) -> None:
    for name, scores in found.scores.items():
        padding = scores.isinf()
        assert scores.shape == expected[name].shape
        assert (scores - expected[name])[~padding].abs().max() <= 1e-10 * max(expected[name].max(), 1e-30), (
            name
        )


@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_as_many_probes_as_outputs_give_the_dense_scores(case: Case) -> None:
    model, batch = case.model(), case.batch()
    with assert_unchanged(model):
        found = weight_scores(model, [batch], TPVImportance(1000), params="*")
    expected = dense_scores(model, batch)
    assert found.scores.keys() == expected.keys()
    assert_scores(found, expected)
    reference = tpv.estimate(model, [batch], Relative(), estimator=tpv.Exact())
    assert found.layers.keys() == reference.layers.keys()
    for layer, part in found.layers.items():
        assert part.value == pytest.approx(reference.layers[layer].value, rel=1e-10)
        assert part.stderr == pytest.approx(reference.layers[layer].stderr, rel=1e-6, abs=1e-9 * part.value)
        assert part.mc_stderr == 0
    assert found.n_examples == batch_size(batch)


def test_the_defaults_are_matrices_that_are_no_norms() -> None:
    assert list(weight_scores(mixed(), tokens()).scores) == [
        "embedding.weight",
        "conv.weight",
        "mix.weight",
        "head.weight",
    ]
    norm = nn.Sequential(nn.LayerNorm((5, 4)), nn.Linear(4, 2)).double()
    assert list(weight_scores(norm, randn(3, 5, 4)).scores) == ["1.weight"]
    assert list(weight_scores(norm, randn(3, 5, 4), params="0.*").scores) == ["0.weight", "0.bias"]


def test_the_score_is_the_tpv_of_removing_that_weight() -> None:
    model, x = mixed(), tokens()
    found = weight_scores(model, x, TPVImportance(9))
    for name, place in [
        ("conv.weight", (1, 2, 0)),
        ("mix.weight", (3, 5)),
        ("head.weight", (8, 1)),
        ("embedding.weight", (4, 2)),
    ]:
        mask = torch.ones(found.scores[name].shape)
        mask[place] = 0
        removed = tpv.estimate(model, x, tpv.Masking({name: mask}))
        assert found.scores[name][place].item() == pytest.approx(removed.value, rel=1e-10)


def test_scores_of_inputs_without_correlation_add_up_to_the_tpv_of_their_mask() -> None:
    model = nn.Linear(8, 3, bias=False).double()
    x = 8**0.5 * torch.linalg.qr(randn(8, 8)).Q
    found = weight_scores(model, x, TPVImportance(3))
    masks = found.masks(0.5)
    removed = tpv.estimate(model, x, tpv.Masking(masks))
    assert removed.value == pytest.approx((found.scores["weight"] * ~masks["weight"]).sum().item(), rel=1e-10)


def test_pieces_batches_and_groups_of_parameters_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mixed(), tokens(7)
    once = weight_scores(model, x, TPVImportance(2))
    monkeypatch.setattr(unstructured, "SCRATCH_BYTES", 1)
    for data, chunk in [(x, 1), (x, 3), ([x[:2], x[2:]], 7)]:
        again = weight_scores(model, data, TPVImportance(2), chunk_size=chunk)
        assert all(
            torch.allclose(again.scores[name], scores, rtol=1e-12) for name, scores in once.scores.items()
        ) == isinstance(data, Tensor)
        exact = weight_scores(model, data, TPVImportance(9), chunk_size=chunk)
        assert_scores(exact, dense_scores(model, x))


def test_gradients_by_few_examples_and_parameters_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = network(), []
    original = unstructured.Sweep.jacobian

    def watched(self, batch):
        inner = original(self, batch)

        class Watched:
            def __enter__(self):
                z, gradients = inner.__enter__()
                return (
                    z,
                    lambda v, names: (
                        seen.append([len(v) * model.get_parameter(n).numel() * 8 for n in names])
                        or gradients(v, names)
                    ),
                )

            def __exit__(self, *error):
                return inner.__exit__(*error)

        return Watched()

    monkeypatch.setattr(unstructured.Sweep, "jacobian", watched)
    monkeypatch.setattr(unstructured, "SCRATCH_BYTES", 20_000)
    weight_scores(model, pictures(5), TPVImportance(2), chunk_size=5)
    assert [len(names) for names in seen] == [1, 1, 2, 2] or [len(names) for names in seen] == [
        1,
        1,
        1,
        1,
        1,
        1,
    ]
    assert all(sum(sizes) <= 20_000 for sizes in seen)


@pytest.mark.parametrize("probes", [1, 2, 5])
def test_probes_are_unbiased_within_their_errors(probes: int) -> None:
    model, x = mixed(), tokens(40)
    exact = dense_scores(model, x)
    draws = [weight_scores(model, x, TPVImportance(probes), generator=seed) for seed in range(60)]
    for name in ("conv.weight", "mix.weight"):
        stack = torch.stack([d.scores[name] for d in draws])
        total = stack.flatten(1).sum(1)
        assert abs(total.mean() - exact[name].sum()) < 4 * total.std() / 60**0.5
        z = (stack.mean(0) - exact[name]) / (stack.std(0) / 60**0.5)
        assert z.square().mean().sqrt() < 1.5
        assert z.abs().max() < 6
    values = torch.tensor([d.layers["conv"].value for d in draws])
    errors = torch.tensor([d.layers["conv"].mc_stderr for d in draws])
    if probes == 1:
        assert errors.isnan().all()
    else:
        assert 0.7 < errors.square().mean().sqrt() / values.std() < 1.4


@pytest.mark.parametrize("shape", ["classes", "positions", "images"])
def test_directions_of_the_cross_entropy_are_its_gradient(shape: str) -> None:
    torch.manual_seed(1)
    model, x, y = {
        "classes": (nn.Linear(3, 4), randn(5, 3), torch.tensor([0, 3, 1, 1, 2])),
        "positions": (
            nn.Linear(3, 4),
            randn(2, 6, 3),
            torch.tensor([[0, 1, -100, 3, 2, 2], [1, 1, 1, -100, -100, 0]]),
        ),
        "images": (
            nn.Conv2d(3, 4, 1),
            randn(2, 3, 2, 3),
            torch.tensor([[[0, 1, 2], [3, -1, 1]], [[2, 2, 2], [0, 0, 1]]]),
        ),
    }[shape]
    model = model.double()
    f = model(x).detach().requires_grad_()
    classes_second = f.movedim(-1, 1) if shape == "positions" else f
    loss = F.cross_entropy(
        classes_second, y.clamp(min=-100), ignore_index=-100 if shape == "positions" else -1, reduction="sum"
    )
    (v,) = torch.autograd.grad(loss, f)
    (own,) = torch.autograd.grad(
        F.cross_entropy(classes_second, classes_second.argmax(1), reduction="sum"), f
    )
    for direction, cotangent in [(JC(), v), (JBR(), own)]:
        found = weight_scores(model, [(x, y)], direction)
        assert_scores(found, dense_scores(model, x, cotangent.flatten(1)))
        assert found.layers["(model)"].mc_stderr == 0
        assert found.metadata["estimator"].startswith(type(direction).__name__)
    keyed = weight_scores(Keyed(model), [{"x": x, "labels": y}], JC())
    assert torch.allclose(keyed.scores["model.weight"], dense_scores(model, x, v.flatten(1))["weight"])


class Keyed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize(
    ("direction", "data", "words"),
    [
        (JC(), randn(5, 3), r"JC needs integer labels of shape \(5,\).*got none"),
        (JC(), [(randn(5, 3), randn(5))], r"got torch\.float64 of shape \(5,\)"),
        (JC(), [(randn(5, 3), torch.ones(5, 1, dtype=torch.long))], r"got torch\.int64 of shape \(5, 1\)"),
        (JC(), [(randn(5, 3), torch.full((5,), 4))], r"a label is 4, and there are 4 classes"),
        (JBR(), randn(5, 3), r"at least two classes"),
    ],
)
def test_directions_say_what_they_need(direction: Criterion, data: Any, words: str) -> None:
    model = nn.Linear(3, 1 if isinstance(direction, JBR) else 4).double()
    with assert_unchanged(model), pytest.raises(tpv.TPVError, match=words):
        weight_scores(model, data, direction)


def test_reliability_is_the_rank_correlation_of_halves() -> None:
    scipy = pytest.importorskip("scipy.stats")
    model, x = network(), pictures(11)
    found = weight_scores(model, x, TPVImportance(3))
    even, odd = (weight_scores(model, x[start::2], TPVImportance(3)).scores for start in (0, 1))

    def expected(names: list[str]) -> float:
        rho = scipy.spearmanr(
            *(torch.cat([half[n].flatten() for n in names]) for half in (even, odd))
        ).statistic
        return 2 * rho / (1 + rho)

    assert found.reliability == pytest.approx(expected(list(even)), abs=1e-12)
    assert found.layer_reliability == pytest.approx(
        {n.removesuffix(".weight"): expected([n]) for n in even}, abs=1e-12
    )
    pieces = weight_scores(model, [x[:3], x[3:]], TPVImportance(3), chunk_size=2)
    assert pieces.reliability == pytest.approx(found.reliability, abs=1e-9)
    top = model(x).softmax(1).max(1).values
    sure = JBR(confidence=top.quantile(0.3).item())
    assert weight_scores(model, x, sure).n_examples < 11
    assert weight_scores(model, x, sure, chunk_size=1).reliability == pytest.approx(
        weight_scores(model, x, sure).reliability, abs=1e-9
    )


def test_rank_correlations() -> None:
    scipy = pytest.importorskip("scipy.stats")
    a, b = randn(50).round(decimals=1), (randn(50) + randn(50, seed=1)).round()
    assert spearman(a, b) == pytest.approx(scipy.spearmanr(a, b).statistic)
    assert spearman(a, torch.ones(50)) != spearman(a, torch.ones(50))
    assert split_half(a, -a) == pytest.approx(-1)
    long = randn(300_000)
    assert split_half(long, long) == pytest.approx(1)
    noisy = long + randn(300_000, seed=1)
    rho = spearman(long, noisy)
    assert split_half(long, noisy) == pytest.approx(2 * rho / (1 + rho), abs=0.01)
    one = weight_scores(network(), pictures(1))
    assert one.reliability != one.reliability


def scores_of(**tensors: Tensor) -> WeightScores:
    return WeightScores(tensors, {}, 0.0, {}, 1)


def removed(masks: dict[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize(
    ("amount", "count"), [(0.5, 10), (0.33, 7), (0.0, 0), (0, 0), (1, 1), (18, 18), (0.125, 2)]
)
def test_exactly_so_many_weights_go(amount: float, count: int) -> None:
    ties = scores_of(a=torch.ones(3, 4), b=torch.ones(8))
    masks = ties.masks(amount)
    assert removed(masks) == count
    assert masks["a"].shape == (3, 4)
    flat = torch.cat([masks["a"].flatten(), masks["b"]])
    assert flat[:11].tolist() == [i >= min(count, 11) for i in range(11)]
    spread = scores_of(a=randn(3, 4).abs(), b=randn(8, seed=1).abs())
    for name, mask in spread.masks(amount).items():
        assert removed(spread.masks(amount)) == count
        kept = torch.cat(
            [s[m] for s, m in zip(spread.scores.values(), spread.masks(amount).values(), strict=True)]
        )
        if count <= 12:
            assert (spread.scores[name][~mask] <= kept.min()).all()


def test_no_parameter_is_emptied() -> None:
    found = scores_of(small=torch.tensor([1e-9, 3e-9, 2e-9, 3e-9]), large=torch.tensor([5.0, 4, 7, 6]))
    assert {k: m.tolist() for k, m in found.masks(4).items()} == {
        "small": [False] * 3 + [True],
        "large": [True, False, True, True],
    }
    assert {k: m.tolist() for k, m in found.masks(0.5, per_layer=True).items()} == {"small": [False, True, False, True], "large": [False, False, True, True]}  # fmt: skip
    for amount, per_layer in [(7, False), (0.9, False), (4, True), (0.95, True)]:
        with pytest.raises(
            tpv.TPVError, match=r"would remove \d of \d weights, and at most \d can go.*remove fewer"
        ):
            found.masks(amount, per_layer=per_layer)
    for amount in (-1, 1.0, 1.5, -0.1, True, "half", float("nan")):
        with pytest.raises(tpv.TPVError, match=r"amount must be a fraction in \[0, 1\) or an int"):
            found.masks(amount)


def test_padding_rows_stay() -> None:
    model, x = mixed(), tokens()
    found = weight_scores(model, x, TPVImportance(9))
    assert found.scores["embedding.weight"][0].isinf().all()
    assert found.scores["embedding.weight"][1:].isfinite().all()
    masks = found.masks(0.9)
    assert masks["embedding.weight"][0].all()
    assert removed(masks) == round(0.9 * (8 * 4 + 96 + 32 + 36))
    with pytest.warns(UserWarning, match=r"leaves out embedding\.weight"):
        assert "embedding.weight" not in found.n_m_masks(2, 4)


def test_padding_rows_of_a_tied_embedding_count_nowhere() -> None:
    scipy = pytest.importorskip("scipy.stats")
    model, x = settled(Tied()), torch.randint(0, 7, (10, 3), generator=seeded(1))
    model.embedding.padding_idx = 0
    found = weight_scores(model, x, TPVImportance(7), params="embedding.weight")
    reference = tpv.estimate(model, x, Relative("embedding.weight"), estimator=tpv.Exact())
    assert found.layers["embedding"].value == pytest.approx(reference.value, rel=1e-10)
    assert found.scores["embedding.weight"][1:].sum().item() == pytest.approx(reference.value, rel=1e-10)
    halves = (
        weight_scores(model, x[i::2], TPVImportance(7), params="embedding.weight")
        .scores["embedding.weight"][1:]
        .flatten()
        for i in (0, 1)
    )
    rho = scipy.spearmanr(*halves).statistic
    assert found.reliability == found.layer_reliability["embedding"] == pytest.approx(2 * rho / (1 + rho))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (5, 8)])
def test_n_of_m_consecutive_inputs_stay(n: int, m: int) -> None:
    found = scores_of(conv=randn(4, 16, 3, 2).abs(), linear=randn(5, 8).abs(), ties=torch.ones(2, 8))
    masks = found.n_m_masks(n, m)
    for name, scores in found.scores.items():
        mask = masks[name]
        assert mask.shape == scores.shape
        for index in itertools.product(*(range(s) for d, s in enumerate(scores.shape) if d != 1)):
            where = (index[0], slice(None), *index[1:])
            for s, k in zip(scores[where].split(m), mask[where].split(m), strict=True):
                assert int(k.sum()) == n
                assert s[k].min() >= s[~k].max()
    assert masks["ties"][0, :m].tolist() == [True] * n + [False] * (m - n)


def test_n_of_m_along_the_first_axis() -> None:
    mask = scores_of(conv1d=randn(8, 3).abs()).n_m_masks(1, 4, dim=0)["conv1d"]
    assert mask.unflatten(0, (2, 4)).sum(1).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_n_of_m_leaves_out_what_does_not_fit() -> None:
    found = scores_of(first=randn(4, 3, 3, 3).abs(), second=randn(4, 8).abs(), flat=randn(8).abs())
    with pytest.warns(UserWarning, match=r"leaves out first, flat"):
        assert list(found.n_m_masks()) == ["second"]
    with pytest.raises(tpv.TPVError, match=r"no parameter has an axis 1 whose size is a multiple of 5"):
        found.n_m_masks(2, 5)
    for options in ({"n": 4}, {"n": 0}, {"m": 1}, {"dim": -1}):
        with pytest.raises(tpv.TPVError, match=r"n_m_masks\(\w=|n_m_masks\(dim="):
            found.n_m_masks(**options)


@pytest.mark.parametrize("amount", [0.5, 0.31, 100])
def test_global_unstructured_takes_the_scores_and_gives_the_same_masks(amount: float) -> None:
    model, x = network(), pictures()
    found = weight_scores(model, x, TPVImportance(3))
    ours = apply_masks(copy.deepcopy(model), found.masks(amount))
    theirs = copy.deepcopy(model)
    scores = found.importance_scores(theirs)
    prune.global_unstructured(
        list(scores), pruning_method=prune.L1Unstructured, importance_scores=scores, amount=amount
    )
    for name in ("0", "4", "6"):
        assert torch.equal(ours.get_submodule(name).weight_mask, theirs.get_submodule(name).weight_mask)
        assert torch.equal(ours.get_submodule(name).weight, theirs.get_submodule(name).weight)
    finite = tpv.estimate(model, x, tpv.Masking(found.masks(amount)), estimator=tpv.MonteCarlo(1))
    assert finite.value == pytest.approx((ours(x) - model(x)).square().sum(1).mean().item())


def test_a_pruned_model_can_be_scored_and_pruned_further() -> None:
    model, x = network(), pictures()
    first = weight_scores(model, x, TPVImportance(3)).masks(0.3)
    permanent = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in first.items():
            permanent.get_parameter(name).mul_(mask)
    expected = weight_scores(permanent, x, TPVImportance(3))
    apply_masks(model, first)
    with assert_unchanged(model):
        found = weight_scores(model, x, TPVImportance(3))
    assert list(found.scores) == [f"{name}_orig" for name in expected.scores]
    for name, scores in expected.scores.items():
        assert torch.allclose(found.scores[f"{name}_orig"], scores, rtol=1e-10)
    more = found.masks(0.6)
    assert all((more[f"{name}_orig"] <= mask).all() for name, mask in first.items())
    assert {(m, a) for m, a in found.importance_scores(model)} == {(model[i], "weight") for i in (0, 4, 6)}
    apply_masks(model, more)
    assert torch.equal(model[4].weight_mask.bool(), more["4.weight_orig"])


def test_a_tied_weight_is_pruned_in_all_its_modules() -> None:
    model, x = mixed(), tokens()
    found = weight_scores(model, x, TPVImportance(9))
    with pytest.raises(tpv.TPVError, match=r"head\.weight is shared by 2 modules"):
        found.importance_scores(model)
    masks = found.masks(0.5)
    finite = tpv.estimate(model, x, tpv.Masking(masks), estimator=tpv.MonteCarlo(1)).value
    before = model(x)
    assert apply_masks(model, masks) is model
    assert torch.equal(model.head.weight, model.other.weight)
    assert (model(x) - before).square().sum(1).mean().item() == pytest.approx(finite)


def test_another_model_is_refused_and_stays_as_it_was() -> None:
    found = weight_scores(network(), pictures())
    other = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(2, 2))
    with assert_unchanged(other):
        with pytest.raises(tpv.TPVError, match=r"no parameter '4\.weight'"):
            apply_masks(other, found.masks(0.5))
        with pytest.raises(
            tpv.TPVError, match=r"'1\.weight' has shape \(2, 2\) in this model, and not \(1, 1\)"
        ):
            apply_masks(other, {"0.weight": torch.ones(8, 4, 3, 3), "1.weight": torch.ones(1, 1)})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_anywhere_leaves_the_model_as_it_was(error: type[BaseException]) -> None:
    assert (
        faults_survived(
            error,
            range(1, 200),
            network,
            lambda model: weight_scores(model, pictures(), TPVImportance(2), chunk_size=3),
        )
        > 5
    )


def test_a_model_that_counts_its_calls_and_holds_gradients_stays_as_it_was() -> None:
    model = test_unchanged.network()
    with assert_unchanged(model):
        weight_scores(model, randn(5, 3, 5, 5))


def test_running_out_of_memory_halves_the_work_and_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = network(), pictures(8)
    expected = dense_scores(model, x)
    original, calls = unstructured.widened, 0

    def full(t: Tensor) -> Tensor:
        nonlocal calls
        if t.ndim and len(t) == 8 and t.shape[1:] == (3, 5):
            raise torch.OutOfMemoryError("injected")
        return original(t)

    monkeypatch.setattr(unstructured, "widened", full)
    monkeypatch.setattr(unstructured, "SCRATCH_BYTES", 1)
    with pytest.warns(UserWarning, match="out of memory"):
        assert_scores(weight_scores(model, x, TPVImportance(3), chunk_size=8), expected)


def test_bad_input_is_refused() -> None:
    model, x = network(), pictures()
    for call, words in [
        (
            lambda: weight_scores(model, x, TPVImportance(0)),
            r"TPVImportance\(probes=0\): probes must be an int of at least 1",
        ),
        (lambda: weight_scores(3, x), r"model must be"),
        (lambda: weight_scores(model, x, params="nothing"), r"matches no trainable parameter"),
        (lambda: weight_scores(nn.LayerNorm((4, 5)), x), r"no trainable weight has two dimensions"),
        (lambda: weight_scores(model, x, generator="0"), r"generator='0'"),
    ]:
        with pytest.raises(tpv.TPVError, match=words):
            call()


def test_float32_and_half_precision() -> None:
    model, x = network(), pictures(16)
    exact = weight_scores(model, x, TPVImportance(3))
    single = weight_scores(copy.deepcopy(model).float(), x.float(), TPVImportance(3))
    half = weight_scores(copy.deepcopy(model).bfloat16(), x.bfloat16(), TPVImportance(3))
    for name, scores in exact.scores.items():
        assert single.scores[name].dtype == half.scores[name].dtype == torch.float32
        assert torch.allclose(single.scores[name].double(), scores, rtol=1e-3, atol=1e-6)
        assert half.scores[name].sum().item() == pytest.approx(scores.sum().item(), rel=0.1)


def test_what_it_prints() -> None:
    text = str(weight_scores(network(), pictures()))
    assert text.startswith("Scores of 663 weights; reliability 0.")
    assert "7 examples, TPVImportance(probes=1), seed 0" in text
    assert text.splitlines()[3].split() == ["layer", "sum", "of", "scores"]


@real
def test_scores_rank_the_damage_of_removing_one_weight() -> None:
    model, x, generator = target.model(), target.images("train[:64]"), seeded(0)
    found = weight_scores(model, x, TPVImportance(10))
    assert "slow_routes" not in found.metadata
    assert found.reliability > 0.95
    names, rows = list(found.scores), []
    with torch.no_grad():
        before = model(x)
        for _ in range(100):
            name = names[int(torch.randint(len(names), (), generator=generator))]
            w = model.get_parameter(name).view(-1)
            i = int(torch.randint(len(w), (), generator=generator))
            kept = w[i].clone()
            w[i] = 0
            rows.append(
                (
                    found.scores[name].view(-1)[i].item(),
                    abs(kept.item()),
                    (model(x) - before).square().sum(1).mean().item(),
                )
            )
            w[i] = kept
    scores, magnitude, damage = torch.tensor(rows).T
    assert spearman(scores, damage) > 0.99 > spearman(magnitude, damage)
