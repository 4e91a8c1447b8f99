"""Auto: its rule, and what the metadata say of the choice."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import randn, settled
from torch import Tensor, nn

import tpv

TRAIN = randn(8, 4)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return settled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)))


@dataclass(frozen=True)
class Drawn(tpv.Perturbation):
    def sample(self, weights: tpv.Weights, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}


class Unsized:
    """Batches whose number nobody knows."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __iter__(self) -> Any:
        yield from randn(self._examples, 4).split(4)


NOISE = tpv.Isotropic(0.1)
LABELS = tpv.LabelNoise(0.1, TRAIN, tpv.Ridge(0.1))
ENTRIES = "independent entries, and "


@pytest.mark.parametrize(
    ("perturbation", "data", "outputs", "estimator", "reason"),
    [
        (tpv.Quantization(bits=4, error="actual"), 6, 3, "Exact(), one Jacobian-vector product", "one fixed displacement"),
        (tpv.Retraining(tpv.LabelNoise(1e-3, TRAIN, tpv.GradientDescent(0.1, 2)), runs=3), 6, 3,
         "MonteCarlo(draws=3)", "networks are trained again, not linearized"),
        (LABELS, 6, 3, "Exact(), through the kernel", "the kernel is written out"),
        (Drawn(), 6, 3, "LinearizedMonteCarlo(draws=16)", "the perturbation has draws and no variances"),
        (NOISE + Drawn(), 6, 3, "LinearizedMonteCarlo(draws=16)", "the perturbation has draws and no variances"),
        (NOISE + LABELS, 6, 3, "LinearizedMonteCarlo(draws=16)", "the perturbation has draws and no variances"),
        (NOISE, 64, 128, "Exact()", ENTRIES + "64 examples × 128 outputs ≤ 8192"),
        (NOISE, 65, 128, "Hutchinson(probes=1)", ENTRIES + "65 examples × 128 outputs > 8192"),
        (NOISE, 9000, 1, "Exact()", ENTRIES + "a single output"),
        (NOISE, Unsized(6), 3, "Hutchinson(probes=1)",
         ENTRIES + "an unknown number of examples × 3 outputs may be more than 8192"),
        (NOISE, Unsized(6), 1, "Exact()", ENTRIES + "a single output"),
    ],
)  # fmt: skip
def test_the_rule(perturbation: Any, data: Any, outputs: int, estimator: str, reason: str) -> None:
    data = randn(data, 4) if isinstance(data, int) else data
    metadata = tpv.estimate(network(outputs), data, perturbation).metadata
    assert metadata["estimator"] == estimator
    assert metadata["auto"] == reason


def test_a_kernel_that_is_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)
    metadata = tpv.estimate(network(), TRAIN, LABELS).metadata
    assert metadata["estimator"] == "HutchPlusPlus(rank=64, draws=8)"
    assert metadata["auto"] == "the kernel is not written out"


def test_auto_is_the_default_of_the_signature() -> None:
    for verb in (tpv.estimate, tpv.stability):
        assert inspect.signature(verb).parameters["estimator"].default == tpv.Auto()
    model = network()
    named, default = (tpv.estimate(model, TRAIN, NOISE, **k) for k in ({"estimator": tpv.Auto()}, {}))
    assert named.value == default.value
    assert "auto" not in tpv.estimate(model, TRAIN, NOISE, estimator=tpv.Exact()).metadata


def test_both_sides_of_stability_get_the_estimator_of_the_larger() -> None:
    few, many = randn(4, 4), randn(65, 4)
    for train, test in ((few, many), (many, few)):
        result = tpv.stability(network(128), train, test, NOISE)
        assert {r.metadata["estimator"] for r in (result.train, result.test)} == {"Hutchinson(probes=1)"}
        assert result.train.metadata["auto"] == ENTRIES + "65 examples × 128 outputs > 8192"


def test_what_is_not_an_estimator_is_refused() -> None:
    for wrong in (None, "exact", tpv.Exact):
        with pytest.raises(tpv.TPVError, match=r"estimator must be a tpv\.Estimator such as tpv\.Exact\(\)"):
            tpv.estimate(network(), TRAIN, NOISE, estimator=wrong)
    with pytest.raises(tpv.TPVError, match=r"the class Exact and not an instance: write Exact\(\.\.\.\)\."):
        tpv.estimate(network(), TRAIN, NOISE, estimator=tpv.Exact)


def test_what_is_not_a_perturbation_is_named_by_its_type() -> None:
    with pytest.raises(tpv.TPVError, match=r"got a Tensor\.$"):
        tpv.estimate(network(), NOISE, TRAIN)
    with pytest.raises(tpv.TPVError, match=r"got the class Isotropic and not an instance"):
        tpv.estimate(network(), TRAIN, tpv.Isotropic)
    with pytest.raises(tpv.TPVError, match=r"got a str 'Isotropic'\.$"):
        tpv.estimate(network(), TRAIN, "Isotropic")
