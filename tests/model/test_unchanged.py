"""The model is left bit for bit as it was, whatever happens."""

from __future__ import annotations

import enum
import gc
import random

import numpy as np
import pytest
import torch
from cases import faults_survived, randn, stateful_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tpv
from tpv.testing import assert_unchanged

VERBS = [
    lambda m, x, **k: tpv.estimate(m, x, tpv.Isotropic(0.1), estimator=tpv.Exact(), chunk_size=2, **k),
    lambda m, x, **k: tpv.estimate(m, x, tpv.Isotropic(0.1), estimator=tpv.Hutchinson(2), chunk_size=2, **k),
    lambda m, x, **k: tpv.estimate(
        m, x, tpv.Quantization(bits=3), estimator=tpv.MonteCarlo(2), chunk_size=2, **k
    ),
    lambda m, x, **k: tpv.linearity(m, x, tpv.Quantization(bits=3), draws=2, chunk_size=2, **k),
]


@pytest.mark.parametrize("verb", VERBS)
def test_a_stateful_model_is_restored(verb) -> None:
    model = stateful_network()
    with assert_unchanged(model):
        verb(model, randn(5, 3, 4, 4))


@pytest.mark.filterwarnings("ignore:the backward pass of an operation")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("verb", VERBS)
def test_faults_at_every_layer_call_leave_the_model_unchanged(verb, error: type[BaseException]) -> None:
    """Raise at the k-th call of a layer, for every k until none raises any more."""
    x = randn(5, 3, 4, 4)
    survived = faults_survived(error, range(1, 200), stateful_network, lambda model: verb(model, x))
    assert survived >= 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "place",
    [
        "tpv.jacobian.batch_pass.BatchPass.reduce",
        "tpv.jacobian.formulas.conv.ConvCall.squares",
        "tpv.jacobian.sweep.Graph",
        "tpv.common.stats.Moments.update",
        "tpv.estimation.linearity.jvp",
        "tpv.model.linearization.Linearization.displaced",
        "tpv.estimation.loop.narrow",
        "tpv.estimation.loop.check_outputs",
        "tpv.perturbations.Isotropic.variance",
    ],
)
def test_faults_inside_the_library_leave_the_model_unchanged(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error("injected")

    monkeypatch.setattr(place, fail)
    reached = 0
    for verb in VERBS:
        model = stateful_network()
        with assert_unchanged(model):
            try:
                verb(model, randn(5, 3, 4, 4))
            except error:
                reached += 1
    assert reached


def test_an_interrupt_from_the_progress_bar_leaves_the_model_unchanged() -> None:
    def progress(event: tpv.ProgressEvent) -> None:
        if event.done > 2:
            raise KeyboardInterrupt

    for verb in VERBS:
        model = stateful_network()
        with assert_unchanged(model), pytest.raises(KeyboardInterrupt):
            verb(model, randn(5, 3, 4, 4), progress=progress)


def test_global_random_states_are_kept_although_a_loader_shuffles() -> None:
    loader = DataLoader(TensorDataset(randn(6, 3, 4, 4)), batch_size=2, shuffle=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    tpv.estimate(stateful_network(), loader, tpv.Isotropic(0.1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.train(),
        lambda m: m[0].weight.data.mul_(2),
        lambda m: m[0].requires_grad_(False),
        lambda m: setattr(m[0].weight, "grad", torch.zeros_like(m[0].weight)),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m[0].register_forward_hook(lambda *_: None),
        lambda m: m.register_buffer("new", torch.zeros(1)),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach().clone())),
        lambda m: torch.rand(1),
    ],
)
def test_assert_unchanged_notices(change) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    with pytest.raises(AssertionError, match=r"changed|appeared"), assert_unchanged(model):
        change(model)


def test_nothing_of_a_pass_stays_in_memory() -> None:
    gc.collect()
    gc.disable()
    try:
        tpv.estimate(
            nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 3, batch_first=True), Last()),
            randn(8, 2, 3).float(),
            tpv.Isotropic(1.0),
            chunk_size=2,
        )
        left = [
            type(o).__name__
            for o in gc.get_objects()
            if str(type(o).__module__).startswith("tpv.jacobian") and not isinstance(o, enum.Enum)
        ]
    finally:
        gc.enable()
    assert not left


class Last(nn.Module):
    def forward(self, returned):
        return returned[0][:, -1]
