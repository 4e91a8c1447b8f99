"""One clear sentence for each kind of bad input."""

from __future__ import annotations

import pytest
import torch
from cases import randn
from torch import nn

import tpv
from tpv.testing import assert_unchanged


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().eval()


NOISE = tpv.Isotropic(0.1)
X = randn(6, 4)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class BatchMean(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Transposed(nn.Linear):
    def forward(self, x):
        return super().forward(x).T


class Returning(nn.Linear):
    def __init__(self, returned):
        super().__init__(4, 3)
        self.returned = returned

    def forward(self, x):
        return self.returned


class Mean(nn.Linear):
    def forward(self, x):
        return super().forward(x).mean()


class Log(nn.Module):
    def forward(self, x):
        return (x - 1e9).log()


def broken_weights() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    return model


MODELS = [
    (lambda: network().train(), r"1 is a BatchNorm1d in training mode.*model\.eval\(\)"),
    (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2)),
        r"1 is an active Dropout\(p=0\.2\).*model\.eval\(\)",
    ),
    (lambda: nn.Sequential(nn.LSTM(4, 3, 2, dropout=0.1)), r"0 is a LSTM with active dropout=0\.1"),
    (lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(), "without running statistics"),
    (lambda: nn.Embedding(3, 4, max_norm=1.0), "max_norm"),
    (
        lambda: network().requires_grad_(False),
        r"all its parameters are frozen: call model\.requires_grad_\(True\)",
    ),
    (lambda: nn.Tanh(), "it has no floating-point parameters"),
    (lambda: lambda x: x, "must be a torch.nn.Module, got function"),
    (broken_weights, r"3\.weight holds NaN or infinity"),
    (lambda: Noisy(4, 3), "two passes over the same batch gave different outputs"),
    (lambda: BatchMean(4, 3), "change with the other examples of its batch"),
    (lambda: Transposed(4, 3), "examples along the first axis"),
    (lambda: Mean(4, 3), "examples along the first axis"),
    (lambda: nn.Sequential(nn.Linear(4, 3), Log(), nn.Tanh()), "1 is the first module to produce them"),
    (lambda: Returning({"a": 1.0, "b": 2.0}), r"returned a dict with a, b.*pass output="),
]


@pytest.mark.parametrize(("build", "sentence"), MODELS)
@pytest.mark.parametrize("verb", [tpv.estimate, tpv.linearity, lambda m, x, p: tpv.stability(m, x, x, p)], ids=["estimate", "linearity", "stability"])  # fmt: skip
def test_models_without_a_fixed_point_are_refused(build, sentence: str, verb) -> None:
    model = build()
    if isinstance(model, nn.Module):
        model = model.double()
    with pytest.raises(tpv.TPVError, match=sentence) as caught:
        verb(model, X, NOISE)
    assert "\n" not in str(caught.value)


class Unsliceable:
    """A batch of a type that nothing is known about."""


DATA = [
    (lambda: torch.empty(0, 4).double(), "empty tensor"),
    (list, "data is empty"),
    (lambda: iter([X]), "one-shot iterator"),
    (lambda: (x for x in [X]), "one-shot iterator"),
    (lambda: {"input": X}, r"wrap one batch in a list, \[batch\]"),
    (lambda: (X, torch.zeros(6)), r"a single tuple.*wrap one batch in a list, \[batch\]"),
    (lambda: 3, "must be a tensor or an iterable of batches"),
    (lambda: [Unsliceable()], "holds no tensor with a batch axis"),
    (lambda: [X.to("meta")], "the batch is on meta and the model on cpu"),
    (lambda: [X * float("nan")], "the batch holds NaN or infinity"),
    (lambda: [X, X / 0], "the batch holds NaN or infinity"),
]


@pytest.mark.parametrize(("data", "sentence"), DATA)
@pytest.mark.parametrize(
    "estimator", [tpv.Exact(), tpv.Hutchinson(), tpv.MonteCarlo(2), tpv.LinearizedMonteCarlo(2)], ids=repr
)
def test_data_that_gives_no_number_is_refused(data, sentence: str, estimator: tpv.Estimator) -> None:
    model = network()
    with assert_unchanged(model), pytest.raises(tpv.TPVError, match=sentence) as caught:
        tpv.estimate(model, data(), NOISE, estimator=estimator)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"generator": "seed"}, "give an int seed or a CPU torch.Generator"),
        ({"chunk_size": 0}, "chunk_size must be an int of at least 1"),
    ],
)
def test_wrong_options_are_refused(options, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(network(), X, NOISE, **options)


def test_what_is_not_a_perturbation_is_refused() -> None:
    with pytest.raises(tpv.TPVError, match=r"must be a tpv\.Perturbation"):
        tpv.estimate(network(), X, 0.1)


def test_a_model_under_no_grad_is_refused() -> None:
    class Silent(nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(tpv.TPVError, match=r"torch\.no_grad\(\)"):
        tpv.estimate(Silent(4, 3).double(), X, NOISE)


def test_overflowing_displacements_are_refused() -> None:
    huge = tpv.Displacement(
        {name: torch.full_like(p, 3e38) for name, p in network().float().named_parameters()}
    )
    with pytest.raises(tpv.TPVError, match="overflow"):
        tpv.estimate(network().float(), X.float(), huge, estimator=tpv.MonteCarlo())


def test_arrays_are_answered_with_from_numpy() -> None:
    for data in (X.numpy(), [X.numpy()]):
        with pytest.raises(tpv.TPVError, match=r"batch of type ndarray .* torch\.from_numpy\.$"):
            tpv.estimate(network(), data, NOISE)


def test_a_chunk_size_is_refused_under_its_own_name() -> None:
    with pytest.raises(tpv.TPVError, match=r"^chunk_size=0: chunk_size must be an int of at least 1"):
        tpv.linearity(network(), X, NOISE, chunk_size=0)
