"""The sweep against the dense Jacobian, layer by layer, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import CASES, Case, randn, seeded
from torch import nn

import tpv
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
        return {name: (torch.rand(len(w), generator=seeded(6)).double() + 0.1).reshape(-1, *[1] * (w.ndim - 1)) for name, w in at.items()}


def assert_agrees(result: tpv.TPVResult, reference: dict[str, float], tolerance: float = 1e-10) -> None:
    assert result.value == pytest.approx(reference["total"], rel=tolerance)
    assert sum(layer.value for layer in result.layers.values()) == pytest.approx(result.value, rel=1e-12)
    for name, layer in result.layers.items():
        assert layer.value == pytest.approx(reference[name], rel=tolerance, abs=tolerance * reference["total"]), name


@pytest.mark.parametrize("law", [tpv.Isotropic(0.3), ByRow(), Elementwise()], ids=["scalar", "rows", "elements"])
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
    other = {name: p.detach() + randn(*p.shape, seed=2) for name, p in model.named_parameters()}
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


def test_float32_takes_the_fast_convolution_and_agrees() -> None:
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
