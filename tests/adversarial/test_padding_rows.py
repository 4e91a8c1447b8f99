"""The ``padding_idx`` row of an embedding: out as an input, in as a row of whatever else uses the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import tpv
from tpv.testing import dense_tpv


class Tied(nn.Module):
    """``tie``: by a shared parameter, by a functional head, or not at all."""

    def __init__(self, tie: str) -> None:
        super().__init__()
        self.e, self.m, self.tie = nn.Embedding(9, 6, padding_idx=1), nn.Linear(6, 6), tie
        self.e.weight.data[1] = torch.randn(6)
        self.h = nn.Linear(6, 9, bias=False)
        if tie == "parameter":
            self.h.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.m(self.e(ids)))
        return nn.functional.linear(h, self.e.weight) if self.tie == "functional" else self.h(h)


def _case(tie: str, *, padded: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Tied(tie).double().eval()
    ids = torch.randint(2, 9, (4, 5))
    if padded:
        ids[0, 3:] = ids[2, 1:] = 1
    return model, ids


TIES = ["parameter", "functional", "none"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tie", TIES)
def test_exact_is_as_autograd_has_it(tie: str, padded: bool) -> None:
    model, ids = _case(tie, padded=padded)
    noise = tpv.Isotropic(1.0)
    right = dense_tpv(model, ids, noise)["total"]
    assert tpv.estimate(model, ids, noise, estimator=tpv.Exact()).value == pytest.approx(right, rel=1e-10)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tie", TIES)
def test_a_displacement_moves_what_gradients_move(tie: str, padded: bool) -> None:
    """To first order by Jδ, and for a small δ by finite differences too."""
    model, ids = _case(tie, padded=padded)
    move = tpv.Displacement({n: p.detach() + 1e-5 * torch.randn_like(p) for n, p in model.named_parameters()})
    right = dense_tpv(model, ids, move)["total"]
    assert tpv.estimate(model, ids, move).value == pytest.approx(right, rel=1e-9)
    finite = tpv.estimate(model, ids, move, estimator=tpv.MonteCarlo(1)).value
    assert finite == pytest.approx(right, rel=1e-3)
    assert tpv.linearity(model, ids, move).value < 1e-6


def test_the_hook_of_a_displaced_pass_is_gone_afterwards() -> None:
    model, ids = _case("parameter", padded=True)
    before = model(ids)
    tpv.estimate(model, ids, tpv.Isotropic(0.1), estimator=tpv.MonteCarlo(2))
    assert not model.e._forward_hooks
    assert torch.equal(functional_call(model, {}, (ids,)), before)
