"""The conformance test that users call on models of their own."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, randn
from torch import Tensor, nn

import tpv
from tpv.jacobian.formulas.linear import LinearCall
from tpv.testing import assert_unchanged, check_model


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GRU(6, 5, batch_first=True), Last(), nn.Linear(5, 3)).eval()


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, returned: tuple[Tensor, Tensor]) -> Tensor:
        return returned[0][:, -1]


def test_routes_and_cost_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    with assert_unchanged(model):
        check = check_model(model, randn(3, 4, 4).float())
    assert check.routes["0.weight"] == "Linear"
    assert check.routes["1.weight_hh_l0"] == "local gradients of 1"
    assert check.unused == ("2.unused",)
    assert check.error < 1e-12
    assert check.cost > 0
    printed = capsys.readouterr().out
    assert "Sequential: 3 examples × 3 outputs" in printed
    assert "all outputs of each example" in printed
    assert "local gradients        4" in printed
    assert "forward+backward passes" in printed
    assert "not used" in printed


def test_a_wrong_formula_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LinearCall.squares

    def off(self, g, variance):
        return {name: square * (1 + 1e-7) for name, square in original(self, g, variance).items()}

    monkeypatch.setattr(LinearCall, "squares", off)
    with pytest.raises(AssertionError, match=r"squared gradient of '0\.\w+' \(Linear\) differs by 1\.0e-07"):
        check_model(network(), randn(3, 4, 4).float())


def test_many_outputs_are_compared_along_random_cotangents() -> None:
    check = check_model(nn.Linear(4, 2000), torch.randn(3, 4))
    assert (check.outputs, check.cotangents) == (2000, 8)
    assert "8 random cotangents" in str(check)


@pytest.mark.parametrize("output", ["probabilities", "kl"])
def test_other_outputs_are_checked_too(output: str) -> None:
    case = next(case for case in CASES if case.name == "repeated")
    assert check_model(case.model(), case.batch(), output=output).error < 1e-9


def test_models_without_a_fixed_point_are_refused() -> None:
    with pytest.raises(tpv.TPVError, match="training mode"):
        check_model(nn.BatchNorm1d(4), torch.randn(3, 4))
