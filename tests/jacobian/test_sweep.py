"""The sweep against the dense Jacobian, layer by layer, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CASES, Case, randn, seeded
from torch import nn

import tpv
from tpv.jacobian.routes.graph import Graph
from tpv.jacobian.routes.recorder import Recorder
from tpv.model.batches import batch_size, narrow
from tpv.testing import assert_unchanged, dense_tpv

IDS = [case.name for case in CASES]


@dataclass(frozen=True)
class Elementwise(tpv.DiagonalPerturbation):
    """A different variance for every weight."""

    def variance(self, at):
        return {name: torch.rand(w.shape, generator=seeded(5)).double() + 0.1 for name, w in at.items()}


@dataclass(frozen=True)
class ByRow(tpv.DiagonalPerturbation):
    """A different variance for every output channel."""

    def variance(self, at):
        return {
            name: (torch.rand(len(w), generator=seeded(6)).double() + 0.1).reshape(-1, *[1] * (w.ndim - 1))
            for name, w in at.items()
        }


def assert_agrees(result: tpv.TPVResult, reference: dict[str, float], tolerance: float = 1e-10) -> None:
    assert result.value == pytest.approx(reference["total"], rel=tolerance)
    assert sum(layer.value for layer in result.layers.values()) == pytest.approx(result.value, rel=1e-12)
    for name, layer in result.layers.items():
        assert layer.value == pytest.approx(
            reference[name], rel=tolerance, abs=tolerance * reference["total"]
        ), name


@pytest.mark.parametrize(
    "law", [tpv.Isotropic(0.3), ByRow(), Elementwise()], ids=["scalar", "rows", "elements"]
)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_exact_agrees_with_the_dense_jacobian(case: Case, law: tpv.Perturbation) -> None:
    model = case.model()
    with assert_unchanged(model):
        result = tpv.estimate(model, [case.batch()], law, estimator=tpv.Exact())
    assert_agrees(result, dense_tpv(model, case.batch(), law))
    assert set(result.metadata.get("slow_routes", {})) == set(case.slow)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_all_probes_of_a_frame_are_exact(case: Case) -> None:
    model = case.model()
    law = tpv.Isotropic(0.3)
    result = tpv.estimate(model, [case.batch()], law, estimator=tpv.Hutchinson(probes=100), chunk_size=2)
    assert_agrees(result, dense_tpv(model, case.batch(), law))
    assert result.mc_stderr == pytest.approx(0, abs=1e-12 * result.value)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_jvp_agrees_with_the_dense_jacobian(case: Case) -> None:
    model = case.model()
    other = {
        name: p.detach() + randn(*p.shape, seed=2) for name, p in model.named_parameters() if p.requires_grad
    }
    law = tpv.Displacement(other)
    result = tpv.estimate(model, [case.batch()], law)
    assert result.value == pytest.approx(dense_tpv(model, case.batch(), law)["total"], rel=1e-10)
    assert result.mc_stderr == 0


def test_unused_parameters_are_named() -> None:
    case = next(case for case in CASES if case.name == "frozen and unused")
    result = tpv.estimate(case.model(), [case.batch()], tpv.Isotropic(1.0))
    assert result.metadata["unused_parameters"] == ["unused.bias", "unused.weight"]
    assert result.layers["unused"].value == 0
    assert "frozen" not in result.layers


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_single_example_agrees_too(case: Case) -> None:
    model, law = case.model(), tpv.Isotropic(0.3)
    one = narrow(case.batch(), 0, 1, batch_size(case.batch()))
    assert_agrees(tpv.estimate(model, [one], law), dense_tpv(model, one, law))


def test_uses_outside_recorded_calls_are_seen_in_the_graph() -> None:
    case = next(case for case in CASES if case.name == "functional use")
    model = case.model()
    names = {id(p): name for name, p in model.named_parameters()}
    layers = [model.layer, model.head]
    with Recorder(layers, n=4, analytic=layers) as recorder:
        graph = Graph(model(case.batch()), recorder.calls)
    uncovered = {name for key, name in names.items() if graph.coverage_gap(key, recorder.calls)}
    assert uncovered == {"layer.weight", "scale"}


def test_an_input_overwritten_after_its_call_is_refused_by_autograd() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x) * 2
            y = self.last(h)
            h.add_(1)
            return y

    with pytest.raises(RuntimeError, match="inplace operation"):
        tpv.estimate(Overwriting().double(), [randn(1, 3)], tpv.Isotropic(1.0))


@pytest.mark.parametrize(
    "options",
    [{"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 8}, {"padding": "same", "bias": False}],
)
def test_float32_takes_the_grouped_convolution_and_agrees(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(8, 8, 3, **options), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten()).double(),
        randn(3, 8, 15, 15),
    )
    expected = dense_tpv(model, x, tpv.Isotropic(1.0))
    monkeypatch.setattr("tpv.jacobian.formulas.conv.ConvCall._unfolded", None)
    assert_agrees(tpv.estimate(model.float(), x.float(), tpv.Isotropic(1.0)), expected, tolerance=1e-5)


@pytest.mark.parametrize("name", ["pixel grams", "pixel grams, groups", "pixel grams, dilation"])
def test_pixel_grams_need_no_patches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    monkeypatch.setattr("tpv.jacobian.formulas.conv.ConvCall.patches", None)
    result = tpv.estimate(case.model(), [case.batch()], tpv.Isotropic(1.0), estimator=tpv.Exact())
    assert_agrees(result, dense_tpv(case.model(), case.batch(), tpv.Isotropic(1.0)))


def test_float32_agrees() -> None:
    case = next(case for case in CASES if case.name == "stride and padding")
    model, x = case.model(), case.batch()
    expected = dense_tpv(model, x, tpv.Isotropic(1.0))
    result = tpv.estimate(model.float(), x.float(), tpv.Isotropic(1.0), estimator=tpv.Exact())
    assert_agrees(result, expected, tolerance=1e-5)
    assert "slow_routes" not in result.metadata


def test_channels_last_input_agrees() -> None:
    case = next(case for case in CASES if case.name == "batchnorm2d")
    model, x = case.model(), case.batch()
    expected = dense_tpv(model, x, tpv.Isotropic(1.0))
    result = tpv.estimate(model, x.contiguous(memory_format=torch.channels_last), tpv.Isotropic(1.0))
    assert_agrees(result, expected)


def test_checkpointed_blocks_are_covered() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.block, x, use_reentrant=False))

    torch.manual_seed(0)
    model, x = Checkpointed().double(), randn(4, 3)
    result = tpv.estimate(model, x, tpv.Isotropic(1.0))
    assert_agrees(result, dense_tpv(model, x, tpv.Isotropic(1.0)))


def test_a_parameter_is_unused_only_if_no_batch_uses_it() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) if (x < 0).all() else self.right(x)

    torch.manual_seed(0)
    model, x = Routed().double(), randn(4, 3).abs()
    result = tpv.estimate(model, [-x, x], tpv.Isotropic(1.0))
    assert "unused_parameters" not in result.metadata
    assert result.layers["left"].value == pytest.approx(result.layers["right"].value)
