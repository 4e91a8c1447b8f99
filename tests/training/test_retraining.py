"""Retraining does what the closed form says at small noise, shows drift for what it is, and can be interrupted."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import bound, filtered, randn, seeded, settled
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset
from zoo import Patches

import tpv
from tpv import GradientDescent, Interpolation, Ridge
from tpv.model.linearization import Linearization
from tpv.model.outputs import centered
from tpv.model.products import jvp
from tpv.ntk.training_set import TrainingSet
from tpv.testing import assert_unchanged
from tpv.training.objective import minibatches

TRAIN, TEST = randn(12, 4), randn(9, 4, seed=1)
GD = GradientDescent(lr=0.2, steps=7)


def network() -> nn.Module:
    torch.manual_seed(5)
    return settled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


def noisy(fit: Any = GD, std: float = 1e-3, data: object = TRAIN, **options: Any) -> tpv.LabelNoise:
    return tpv.LabelNoise(std, data, fit, **options)


def retraining(fit: Any = GD, std: float = 1e-3, runs: int = 2, **options: Any) -> tpv.Retraining:
    return tpv.Retraining(noisy(fit, std), runs=runs, **options)


def run_of(event: tpv.ProgressEvent) -> int | None:
    """The number of the run that has made a step, 0 for the control."""
    named = re.search(r" · (?:run (\d+)|control run)$", event.stage)
    return int(named[1] or 0) if named and event.done else None


def counted(found: list[tuple[int, int]]) -> Callable[[tpv.ProgressEvent], None]:
    def listen(event: tpv.ProgressEvent) -> None:
        if (run := run_of(event)) is not None:
            found.append((run, event.done))

    return listen


def jacobian(
    model: nn.Module, batch: Any, read: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(rows, parameters), and the parameters."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})
    found = jacrev(lambda w: read(functional_call(model, w, args, kwargs)).reshape(-1))(parameters)
    return torch.cat([j.reshape(len(j), -1) for j in found.values()], dim=1), parameters


def predicted(j: Tensor, fit: GradientDescent, noise: Tensor, outputs: int) -> Tensor:
    """Jᵀ φ(K) ε."""
    return j.T @ (filtered(j @ j.T, fit, outputs) @ noise)


def drawn(spec: tpv.PerturbationSpec, model: nn.Module, seed: int = 3) -> Tensor:
    return torch.cat([d.reshape(-1) for d in bound(spec, model).sample(seeded(seed)).values()])


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    "fit",
    [
        GradientDescent(lr=0.3, steps=1),
        GradientDescent(lr=0.3, steps=30),
        GradientDescent(lr=0.2, steps=25, momentum=0.9),
        GradientDescent(lr=0.3, steps=30, gamma=0.5),
        GradientDescent(lr=0.1, steps=20, momentum=0.5, gamma=0.2),
    ],
    ids=repr,
)
def test_small_noise_is_refitted_as_the_spectral_filter_says(fit: GradientDescent, center: bool) -> None:
    model, std = network(), 1e-6
    noise = noisy(fit, std, data=list(TRAIN.split(5)), center=center)
    train = TrainingSet(Linearization(model), TRAIN, center=center)
    epsilon = std * torch.cat([e.reshape(-1) for e in train_noise(noise, model)])
    j, _ = jacobian(model, TRAIN, (lambda f: centered(f, f)) if center else (lambda f: f))
    expected = predicted(j, fit, epsilon, train.outputs)
    found = drawn(tpv.Retraining(noise), model)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def train_noise(noise: tpv.LabelNoise, model: nn.Module, seed: int = 3) -> list[Tensor]:
    return TrainingSet(Linearization(model), noise.data, center=noise.center).noise(seeded(seed))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.mix = nn.Linear(4, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(input_ids))))


@pytest.mark.parametrize(
    ("gamma", "limit"), [(0.05, Ridge(0.05)), (0.0, Interpolation(1e-9))], ids=["ridge", "interpolation"]
)
def test_training_to_the_end_gives_ridge_and_without_a_penalty_interpolation(
    gamma: float, limit: Any
) -> None:
    x = TRAIN[:3]
    to_the_end = GradientDescent(lr=0.5, steps=3000, momentum=0.9, gamma=gamma)
    real = drawn(tpv.Retraining(noisy(to_the_end, std=1e-6, data=x)), network())
    closed = drawn(noisy(limit, std=1e-6, data=x), network())
    assert (real - closed).norm() < 1e-5 * closed.norm()


def test_progress_reports_each_step_of_each_run() -> None:
    events: list[tpv.ProgressEvent] = []
    tpv.estimate(network(), TEST, retraining(runs=1), progress=events.append)
    steps = [event for event in events if run_of(event) is not None]
    assert [event.stage for event in steps] == ["measuring · control run"] * 7 + ["measuring · run 1"] * 7
    assert [(event.done, event.total) for event in steps] == [(step, 7) for step in range(1, 8)] * 2
    losses = [float(event.text.removeprefix("mse ")) for event in steps[7:]]
    assert losses == sorted(losses, reverse=True)
    assert (events[-1].stage, events[-1].done) == ("measuring", 9)


def test_padded_positions_stay_out_and_padding_rows_are_as_autograd_has_them() -> None:
    torch.manual_seed(0)
    model = settled(Tokens())
    ids = torch.tensor([[1, 2, 0], [3, 4, 5], [6, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    fit, std = GradientDescent(lr=0.3, steps=12), 1e-6
    noise = tpv.LabelNoise(std, [batch], fit)
    mask = batch["attention_mask"].unsqueeze(2)
    j, _ = jacobian(model, batch, lambda f: centered(f, f) * mask)
    epsilon = std * torch.cat([e.reshape(-1) for e in train_noise(noise, model)])
    expected = predicted(j, fit, epsilon, outputs=int(mask.sum()) * 7)
    found = drawn(tpv.Retraining(noise), model)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_minibatches_are_consecutive_examples_in_order_whatever_the_batches() -> None:
    """Against a plain loop with the model itself."""
    fit, size = GradientDescent(lr=0.1, steps=8, momentum=0.5), 5
    noise = noisy(fit, 0.1, data=list(TRAIN.split([7, 5])))
    model, other = network(), network()
    z = centered(other(TRAIN), TRAIN).detach()
    targets = z + 0.1 * torch.cat(train_noise(noise, model))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.5)
    minibatch = itertools.cycle([slice(0, 5), slice(5, 10), slice(10, 12)])
    for rows in itertools.islice(minibatch, 8):
        optimizer.zero_grad()
        f = other(TRAIN[rows])
        nn.functional.mse_loss(f - f.mean(1, keepdim=True), targets[rows]).backward()
        optimizer.step()
    expected = torch.cat(
        [(p - q).detach().reshape(-1) for p, q in zip(other.parameters(), model.parameters(), strict=True)]
    )
    assert torch.allclose(
        drawn(tpv.Retraining(noise, batch_size=size), model), expected, rtol=1e-9, atol=1e-12
    )
    assert not torch.allclose(drawn(tpv.Retraining(noise), model), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "ends"), [(None, [12]), (100, [12]), (5, [5, 10, 12]), (12, [12]), (1, list(range(1, 13)))]
)
def test_minibatches_cover_every_example_once(size: int | None, ends: list[int]) -> None:
    train = TrainingSet(Linearization(network()), list(TRAIN.split(7)), center=False, chunk_size=4)
    found, places, seen = [], [], 0
    for (part, rows), last in minibatches(train, size):
        places += range(rows.start, rows.stop)
        assert rows.stop - rows.start == 3 * len(part)
        seen += len(part)
        found += [seen] if last else []
    assert found == ends
    assert places == list(range(36))


def test_chunks_do_not_matter_and_running_out_of_memory_halves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = drawn(retraining(), network())
    original = Linearization.at

    def small(self: Linearization, replaced: Any, batch: Any) -> Tensor:
        if len(batch) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, replaced, batch)

    monkeypatch.setattr(Linearization, "at", small)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = drawn(retraining(GradientDescent(lr=0.2, steps=7)), network())
        at_once = drawn(retraining(GradientDescent(lr=0.2, steps=1)), network())
    assert [str(w.message).partition("with ")[2] for w in said] == [
        "6 examples at a time.",
        "3 examples at a time.",
    ] * 2
    assert at_once.norm() > 0
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_the_first_estimate_is_finite_over_the_runs_and_equals_the_direct_difference() -> None:
    model, spec = network(), retraining(std=0.1, runs=3)
    result = tpv.estimate(model, TEST, spec)
    assert result.metadata["estimator"] == "MonteCarlo(draws=3)"
    seeds = torch.randint(2**62, (3,), generator=seeded(0)).tolist()
    for value, seed in zip(result.draws, seeds, strict=True):
        delta = bound(spec, model).sample(seeded(seed))
        moved = functional_call(
            model, {n: p + delta[n] for n, p in model.named_parameters()}, (TEST,)
        ) - model(TEST)
        assert value == pytest.approx(
            (moved - moved.mean(1, keepdim=True)).square().sum(1).mean().item(), rel=1e-10
        )
    assert result.value == pytest.approx(sum(result.draws) / 3)
    assert tpv.TPVResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("center", [True, False])
def test_the_closed_form_says_the_same_draw_by_draw(center: bool) -> None:
    noise = noisy(GradientDescent(lr=0.2, steps=20, momentum=0.5, gamma=0.1), 1e-6, center=center)
    model, first_order = network(), tpv.LinearizedMonteCarlo(3)
    closed, real = (
        tpv.estimate(model, TEST, noise, estimator=first_order),
        tpv.estimate(model, TEST, tpv.Retraining(noise, runs=3)),
    )
    assert real.draws == pytest.approx(closed.draws, rel=1e-5)
    assert real.metadata["output"] == closed.metadata["output"] == ("centered logits" if center else "logits")


def test_facts_name_the_noise_and_the_fit_of_each_run() -> None:
    model = network()
    spec = tpv.Retraining(noisy(std=0.5, relative=True), runs=3)
    metadata = tpv.estimate(model, TEST, spec).metadata
    std = 0.5 * model(TRAIN).abs().mean().item()
    assert metadata["noise_std"] == pytest.approx(std)
    assert len(metadata["runs"]) == 3
    for run in metadata["runs"]:
        assert run["mse_before"] == pytest.approx(
            std**2 * 2 / 3, rel=0.7
        )  # centring takes one of three dimensions
        assert 0 < run["mse_after"] < run["mse_before"]
        assert run["seconds"] >= 0
    assert metadata["control_mse_after"] < 1e-24


def test_the_reported_errors_are_those_of_the_noisy_targets() -> None:
    model, spec = network(), retraining(std=0.3, runs=1)
    metadata = tpv.estimate(model, TEST, spec).metadata
    (seed,) = torch.randint(2**62, (1,), generator=seeded(0)).tolist()
    z = centered(model(TRAIN), TRAIN)
    targets = z + 0.3 * train_noise(spec.noise, model, seed)[0]
    delta = bound(spec, model).sample(seeded(seed))
    f = functional_call(model, {n: p + delta[n] for n, p in model.named_parameters()}, (TRAIN,))
    assert metadata["runs"][0]["mse_before"] == pytest.approx((z - targets).square().mean().item(), rel=1e-10)
    assert metadata["runs"][0]["mse_after"] == pytest.approx(
        (centered(f, f) - targets).square().mean().item(), rel=1e-10
    )


def test_linearity_follows_estimate_without_training_again(tmp_path: Any) -> None:
    found: list[tuple[int, int]] = []
    model, spec = network(), retraining(std=1e-4, runs=3, folder=tmp_path)
    finite = tpv.estimate(model, TEST, spec, progress=counted(found))
    assert len(found) == 4 * GD.steps
    assert [run for run, step in found if step == 1] == [0, 1, 2, 3]
    result = tpv.linearity(model, TEST, spec, draws=3, progress=counted(found))
    assert len(found) == 4 * GD.steps
    assert result.finite == pytest.approx(finite.value, rel=1e-12)
    assert result.value < 1e-4
    tpv.estimate(model, TRAIN, spec, estimator=tpv.LinearizedMonteCarlo(4), progress=counted(found))
    assert found[4 * GD.steps :] == [(4, step) for step in range(1, GD.steps + 1)]


def test_both_sides_of_stability_share_their_runs() -> None:
    found: list[tuple[int, int]] = []
    result = tpv.stability(network(), TRAIN, TEST, retraining(runs=3), progress=counted(found))
    assert (
        len(found) == 3 * 4 * GD.steps
    )  # all inputs and each half, three runs and the control, for two readings each
    assert result.train.metadata["runs"] == result.test.metadata["runs"]
    assert result.train.metadata["noise_std"] == 1e-3


def test_single_examples_of_a_network_with_norms_add_up() -> None:
    """Alone, an example's gradient is wrong on the CPU behind this BatchNorm."""
    torch.manual_seed(1)
    model, x = settled(Patches()), randn(3, 3, 6, 6)
    whole, single = (
        drawn(tpv.Retraining(noisy(GradientDescent(0.02, 4), 0.1, data)), model)
        for data in ([x], list(x.split(1)))
    )
    assert torch.allclose(whole, single, rtol=1e-9, atol=1e-14)


def test_without_a_folder_every_call_trains_again() -> None:
    found: list[tuple[int, int]] = []
    model, spec = network(), retraining(runs=1)
    first, again = (tpv.estimate(model, TEST, spec, progress=counted(found)).value for _ in range(2))
    assert first == again
    assert len(found) == 4 * GD.steps


def test_another_model_other_data_or_other_noise_is_trained_again(tmp_path: Any) -> None:
    found: list[tuple[int, int]] = []
    spec = retraining(runs=1, folder=tmp_path)
    model = network()
    tpv.estimate(model, TEST, spec, progress=counted(found))
    tpv.estimate(model, TEST, spec, generator=1, progress=counted(found))
    assert len(found) == 3 * GD.steps  # the control is the same
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9
    tpv.estimate(model, TEST, spec, progress=counted(found))
    assert len(found) == 5 * GD.steps
    tpv.estimate(model, TEST, spec, output="kl", chunk_size=2, progress=counted(found))
    assert len(found) == 5 * GD.steps
    for options in ({"forward": lambda m, x: 2 * m(x)}, {"output": lambda f: f[:, :2]}):
        tpv.estimate(model, TEST, spec, **options, progress=counted(found))
    assert len(found) == 9 * GD.steps


def test_own_outputs_do_not_drift_and_other_targets_do() -> None:
    model = network()
    own = tpv.estimate(model, TEST, retraining(std=1e-2, runs=2))
    assert own.metadata["control"]["value"] <= 1e-12 * own.value
    assert own.metadata["control"]["variance"] == pytest.approx(own.value, rel=1e-9)
    labels = nn.functional.one_hot(torch.arange(12) % 3).double()
    with pytest.warns(UserWarning, match="that part is drift"):
        drifting = tpv.estimate(model, TEST, retraining(std=1e-2, runs=2, targets=labels))
    control = drifting.metadata["control"]
    assert control["value"] > 0.9 * drifting.value
    assert control["variance"] < 0.05 * drifting.value
    assert drifting.metadata["control_mse_before"] > drifting.metadata["control_mse_after"]
    with pytest.warns(UserWarning, match="that part is drift"):
        result = tpv.linearity(model, TEST, retraining(std=1e-2, targets=labels), draws=2)
    assert result.metadata["control"] == pytest.approx(control)


def test_the_variance_around_the_control_is_that_of_the_trained_networks() -> None:
    model = network()
    spec = retraining(std=0.1, runs=2, targets=randn(12, 3, seed=8))
    with pytest.warns(UserWarning, match="drift"):
        result = tpv.estimate(model, TEST, spec, output="logits", chunk_size=4)
    here = bound(spec, model)
    deltas = [
        here.control(),
        *(here.sample(seeded(s)) for s in torch.randint(2**62, (2,), generator=seeded(0)).tolist()),
    ]
    start, *others = (
        functional_call(model, {n: p + d[n] for n, p in model.named_parameters()}, (TEST,)) for d in deltas
    )
    expected = sum((f - start).square().sum(1).mean().item() for f in others) / 2
    assert result.metadata["control"]["variance"] == pytest.approx(expected, rel=1e-10)
    assert result.metadata["control"]["value"] == pytest.approx(
        (start - model(TEST)).square().sum(1).mean().item(), rel=1e-10
    )


def test_first_order_draws_have_a_control_too() -> None:
    model, spec = network(), retraining(std=1e-2, runs=2, targets=randn(12, 3, seed=8))
    with pytest.warns(UserWarning, match="drift"):
        result = tpv.estimate(model, TEST, spec, output="logits", estimator=tpv.LinearizedMonteCarlo(2))
    assert set(result.metadata["control"]) == {"value"}
    _, tangent = jvp(Linearization(model), TEST, bound(spec, model).control())
    assert result.metadata["control"]["value"] == pytest.approx(
        tangent.square().sum(1).mean().item(), rel=1e-10
    )


def test_a_sum_keeps_the_control_and_the_facts() -> None:
    spec = retraining(std=1e-2, runs=2, targets=randn(12, 3, seed=8))
    with pytest.warns(UserWarning, match="drift"):
        alone = tpv.estimate(network(), TEST, spec, output="logits").metadata
    with pytest.warns(UserWarning, match="drift"):
        both = tpv.estimate(network(), TEST, spec + tpv.Isotropic(1e-6), estimator=tpv.MonteCarlo(2)).metadata
    assert both["control"]["value"] == alone["control"]["value"]
    assert both["noise_std"] == alone["noise_std"]


def test_weight_decay_is_drift() -> None:
    spec = retraining(std=1e-4, optimizer=lambda params: torch.optim.SGD(params, lr=0.2, weight_decay=0.1))
    with pytest.warns(UserWarning, match="drift"), pytest.warns(UserWarning, match="did not fit"):
        result = tpv.estimate(network(), TEST, spec)
    assert result.metadata["control"]["value"] > 0.5 * result.value


def test_a_factory_of_the_same_optimizer_gives_the_same_run() -> None:
    fit = GradientDescent(lr=0.2, steps=6, momentum=0.9, gamma=0.3)
    model = network()
    made = retraining(fit, optimizer=lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9))
    assert torch.equal(drawn(retraining(fit), model), drawn(made, model))
    slower = retraining(fit, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    assert not torch.allclose(drawn(retraining(fit), model), drawn(slower, model), rtol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Rprop,
        torch.optim.NAdam,
    ],
)
def test_adaptive_optimizers_are_refused_unless_asked_for(make: Any) -> None:
    with pytest.raises(tpv.TPVError, match=rf"refuses {make.__name__}, because"):
        tpv.estimate(network(), TEST, retraining(optimizer=lambda params: make(params, lr=1e-3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            tpv.estimate(
                network(), TEST, retraining(optimizer=lambda params: make(params, lr=1e-3), adaptive=True)
            ).value
            > 0
        )


def test_asgd_is_let_through() -> None:
    assert (
        drawn(
            retraining(optimizer=lambda params: torch.optim.ASGD(params, lr=0.1, lambd=0)), network()
        ).norm()
        > 0
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda model: lambda params: None, "gave a NoneType"),
        (
            lambda model: lambda params: torch.optim.SGD(model.parameters(), lr=0.1),
            "other tensors than the parameters",
        ),
        (lambda model: lambda params: torch.optim.LBFGS(params), "several times in a step"),
        (lambda model: lambda params: torch.optim.SGD(params, lr=0.1, maximize=True), "climbs the loss"),
    ],
)
def test_optimizers_that_cannot_serve_are_refused_before_any_step(make: Any, sentence: str) -> None:
    model, found = network(), []
    spec = retraining(optimizer=make(model), adaptive=True)
    with assert_unchanged(model), pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(model, TEST, spec, progress=counted(found))
    assert not found


def test_a_run_that_does_not_fit_is_named() -> None:
    with pytest.warns(
        UserWarning, match=r"retraining run 1 did not fit its noisy targets: .* from \S+ to \S+ in 3 steps"
    ):
        drawn(retraining(GradientDescent(lr=5.0, steps=3), std=0.1), network())


def test_divergence_tells_the_largest_lr() -> None:
    with pytest.raises(tpv.TPVError, match="run 1 of the retraining diverged at step") as caught:
        drawn(tpv.Retraining(noisy(GradientDescent(lr=1e3, steps=400, momentum=0.5), 0.1)), linear())
    linear_bound = float(str(caught.value).split("below about ")[1].split(",")[0])
    j, _ = jacobian(linear(), TRAIN, lambda f: centered(f, f))
    expected = 2 * 1.5 / (2 * torch.linalg.eigvalsh(j @ j.T).max().item() / 36)
    assert linear_bound == pytest.approx(expected, rel=0.05)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return settled(nn.Linear(4, 3))


def test_the_noise_is_that_of_the_training_set() -> None:
    """One step from w* moves along Jᵀε: ε is ``TrainingSet.noise`` of the same generator."""
    model, noise = network(), noisy(GradientDescent(lr=0.5, steps=1), 1e-2, center=False)
    j, _ = jacobian(model, TRAIN, lambda f: f)
    epsilon = 1e-2 * train_noise(noise, model)[0].reshape(-1)
    assert torch.allclose(drawn(tpv.Retraining(noise), model), 0.5 * 2 / 36 * (j.T @ epsilon), rtol=1e-9)


def test_one_example_with_one_output_is_enough() -> None:
    model = settled(nn.Linear(4, 1))
    result = tpv.estimate(
        model, TEST, tpv.Retraining(noisy(GradientDescent(0.01, 5), data=TRAIN[:1]), runs=1)
    )
    assert result.value > 0
    assert result.metadata["runs"][0]["mse_after"] < result.metadata["runs"][0]["mse_before"]


def test_only_selected_weights_move() -> None:
    model = network()
    spec = tpv.Retraining(noisy(params="2.*"))
    assert spec.params == "2.*"
    assert spec.output == "centered"
    for names in (None, "2.*", "0.*"):
        delta = bound(tpv.Retraining(noisy(params=names)), model).sample(seeded())
        assert set(delta) == set(tpv.Weights(model).select(names))
    assert tpv.estimate(model, TEST, spec).metadata["moved_parameters"] == 21


class Interrupt:
    """Progress that interrupts at a step of a run."""

    def __init__(self, run: int, step: int) -> None:
        self.at = run, step

    def __call__(self, event: tpv.ProgressEvent) -> None:
        if (run_of(event), event.done) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("run", [0, 1, 2])
def test_model_and_random_state_are_unchanged_also_when_interrupted(run: int) -> None:
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with assert_unchanged(model):
        tpv.estimate(model, TEST, retraining())
    with assert_unchanged(model), pytest.raises(KeyboardInterrupt):
        tpv.linearity(model, TEST, retraining(), draws=2, progress=Interrupt(run, 3))


def test_draws_leave_the_model_and_global_generators_alone() -> None:
    model = network()
    with assert_unchanged(model):
        bound(retraining(), model).sample(seeded())


def test_an_interrupted_series_goes_on_where_it_stopped(tmp_path: Any) -> None:
    whole = tpv.estimate(network(), TEST, retraining(std=0.1, runs=4))
    with pytest.raises(KeyboardInterrupt):
        tpv.estimate(network(), TEST, retraining(std=0.1, runs=4, folder=tmp_path), progress=Interrupt(3, 2))
    assert len(list(tmp_path.iterdir())) == 3
    found: list[tuple[int, int]] = []
    result = tpv.estimate(
        network(), TEST, retraining(std=0.1, runs=4, folder=str(tmp_path)), progress=counted(found)
    )
    assert found == [(run, step) for run in (3, 4) for step in range(1, GD.steps + 1)]
    assert (result.value, result.stderr, result.draws) == (whole.value, whole.stderr, whole.draws)
    assert result.metadata["control"] == whole.metadata["control"]
    assert result.metadata["perturbation"] == whole.metadata["perturbation"]


@pytest.mark.parametrize("content", [b"", b"not a file of torch", None])
def test_broken_and_foreign_files_are_done_again(tmp_path: Any, content: bytes | None) -> None:
    expected = tpv.estimate(network(), TEST, retraining(runs=1, folder=tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    if content is None:
        files[0].write_bytes(files[1].read_bytes())
    for file in files if content is not None else []:
        file.write_bytes(content)
    found: list[tuple[int, int]] = []
    with nullcontext() if content is None else pytest.warns(UserWarning, match="cannot be read"):
        result = tpv.estimate(network(), TEST, retraining(runs=1, folder=tmp_path), progress=counted(found))
    assert len(found) == GD.steps * (1 if content is None else 2)
    assert result.value == expected.value


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: tpv.Retraining(noisy(std=2e-3), runs=1, folder=folder),
        lambda folder: tpv.Retraining(noisy(GradientDescent(0.2, 6)), runs=1, folder=folder),
        lambda folder: tpv.Retraining(noisy(data=TRAIN + 1e-9), runs=1, folder=folder),
        lambda folder: tpv.Retraining(noisy(center=False), runs=1, folder=folder),
        lambda folder: tpv.Retraining(noisy(params="2.*"), runs=1, folder=folder),
        lambda folder: retraining(runs=1, folder=folder, batch_size=6),
        lambda folder: retraining(runs=1, folder=folder, optimizer=lambda p: torch.optim.SGD(p, lr=0.21)),
        lambda folder: retraining(runs=1, folder=folder, targets=network()(TRAIN).detach() + 1e-9),
    ],
)
def test_runs_of_anything_else_are_not_taken_from_the_folder(tmp_path: Any, other: Any) -> None:
    tpv.estimate(network(), TEST, retraining(runs=1, folder=tmp_path))
    found: list[tuple[int, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tpv.estimate(network(), TEST, other(tmp_path), progress=counted(found))
    assert {run for run, _ in found} == {0, 1}


def test_what_does_not_fit_in_memory_goes_to_files_and_is_not_trained_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tpv.common.resume._MEMORY_BYTES", 500)
    monkeypatch.setattr("tpv.estimators.draws._CACHE_BYTES", 0)
    found: list[tuple[int, int]] = []
    result = tpv.estimate(network(), TEST, retraining(std=0.1, runs=3), chunk_size=2, progress=counted(found))
    assert len(found) == 4 * GD.steps
    monkeypatch.undo()
    assert result.draws == tpv.estimate(network(), TEST, retraining(std=0.1, runs=3), chunk_size=2).draws


@pytest.fixture
def shuffled() -> Iterator[DataLoader]:
    state = torch.get_rng_state()
    yield DataLoader(TensorDataset(TRAIN), batch_size=6, shuffle=True)
    torch.set_rng_state(state)


def test_data_in_a_changing_order_is_refused(shuffled: DataLoader) -> None:
    with pytest.raises(tpv.TPVError, match="switch off shuffling"):
        tpv.estimate(network(), TEST, tpv.Retraining(noisy(data=shuffled)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: tpv.Retraining(tpv.Isotropic(0.1)),
            r"Retraining\(noise=Isotropic\(std=0\.1\)\): give a tpv\.LabelNoise",
        ),
        (
            lambda: retraining(Ridge(0.1)),
            r"cannot follow Ridge\(gamma=0\.1\), which has no steps: give LabelNoise a GradientDescent",
        ),
        (lambda: retraining(Interpolation()), "which has no steps"),
        (lambda: retraining(runs=0), r"Retraining\(runs=0\): runs must be an int of at least 1"),
        (
            lambda: retraining(batch_size=0),
            r"Retraining\(batch_size=0\): batch_size must be an int of at least 1",
        ),
        (
            lambda: retraining(optimizer="sgd"),
            r"optimizer=\.\.\.\) is a str: give a function, such as lambda parameters",
        ),
        (
            lambda: retraining(targets=torch.arange(12)),
            r"targets=\.\.\.\) is torch\.int64: give a floating-point tensor",
        ),
        (lambda: retraining(targets=[1.0]), "is list: give"),
        (lambda: retraining(targets=torch.full((12, 3), math.nan)), "NaN or infinity"),
        (lambda: retraining(folder=3), r"folder=3\): folder must be a path"),
    ],
)
def test_wrong_options_get_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_targets_and_folders_that_do_not_fit_are_refused_before_any_step(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    found: list[tuple[int, int]] = []
    with pytest.raises(
        tpv.TPVError, match=r"has the shape \(12, 2\); the outputs on the training data have \(12, 3\)"
    ):
        tpv.estimate(network(), TEST, retraining(targets=randn(12, 2)), progress=counted(found))
    with pytest.raises(tpv.TPVError, match=r"cannot write to .* choose another folder"):
        tpv.estimate(network(), TEST, retraining(folder=tmp_path / "file"), progress=counted(found))
    assert not found


def test_the_text_names_what_differs_from_the_defaults() -> None:
    spec = tpv.Retraining(
        noisy(GradientDescent(lr=0.2, steps=7)), runs=3, batch_size=4, targets=randn(12, 3), folder="here"
    )
    assert repr(spec) == (
        "Retraining(noise=LabelNoise(std=0.001, fit=GradientDescent(lr=0.2, steps=7)), runs=3, batch_size=4, targets=...)"
    )
