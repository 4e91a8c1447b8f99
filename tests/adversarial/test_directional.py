"""Operations whose backward pass cannot be differentiated: Jδ is right by another route, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import tpv
from tpv.testing import dense_jacobian, dense_tpv


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


class Detached(OnceDifferentiable):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = (t.detach() for t in ctx.saved_tensors)
        return g.detach() @ w, g.detach().t() @ x


class ByNumPy(OnceDifferentiable):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w, v = (t.detach().numpy() for t in (*ctx.saved_tensors, g))
        return torch.from_numpy(v @ w), torch.from_numpy(np.ascontiguousarray(v.T @ x))


class WithKernel(nn.Module):
    def __init__(self, kernel: type[torch.autograd.Function], outputs: int = 2) -> None:
        super().__init__()
        self.kernel, self.w, self.head = kernel, nn.Parameter(randn(4, 3)), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.kernel.apply(x, self.w)))


KERNELS = [OnceDifferentiable, Detached, ByNumPy]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("outputs", [2, 70])
def test_products_are_right_without_a_differentiable_backward(
    kernel: type[torch.autograd.Function], outputs: int
) -> None:
    torch.manual_seed(0)
    model, x = WithKernel(kernel, outputs).double(), randn(6, 3)
    delta = {name: 1e-3 * torch.randn_like(p) for name, p in model.named_parameters()}
    move = tpv.Displacement({name: p.detach() + delta[name] for name, p in model.named_parameters()})
    right = dense_tpv(model, x, move)["total"]
    with pytest.warns(UserWarning, match="cannot be differentiated"):
        assert tpv.estimate(model, x, move).value == pytest.approx(right, rel=1e-7)
    with pytest.warns(UserWarning, match="finite differences" if outputs > 64 else "backward passes"):
        assert tpv.linearity(model, x, move).first_order == pytest.approx(right, rel=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_so_are_those_of_kernels(kernel: type[torch.autograd.Function]) -> None:
    torch.manual_seed(0)
    model, x, v = WithKernel(kernel).double(), randn(6, 3), randn(12)
    rows = torch.cat([j.reshape(12, -1) for j in dense_jacobian(model, x).values()], 1)
    with pytest.warns(UserWarning, match="cannot be differentiated"):
        product = tpv.NTK(model, x, center=False, dense=False) @ v
    torch.testing.assert_close(product, rows @ (rows.T @ v))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda h: torch.tanh(self.a(h)), x, use_reentrant=self.reentrant))


def _questions(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    move = tpv.Quantization(4, error="actual", params="a.*")
    return {
        "displacement": lambda: tpv.estimate(model, x, move),
        "linearity": lambda: tpv.linearity(model, x, move),
        "draws": lambda: tpv.estimate(model, x, tpv.Isotropic(1.0), estimator=tpv.LinearizedMonteCarlo(2)),
    }


@pytest.mark.parametrize("question", ["displacement", "linearity", "draws"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_refused(question: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(tpv.TPVError, match=r"under torch.no_grad|no way of computing"):
        _questions(Checkpointed(reentrant=True).double(), randn(6, 3))[question]()


def test_other_checkpoints_are_exact() -> None:
    torch.manual_seed(0)
    model, x = Checkpointed(reentrant=False).double(), randn(6, 3)
    move = tpv.Quantization(4, error="actual", params="a.*")
    assert tpv.estimate(model, x, move).value == pytest.approx(dense_tpv(model, x, move)["total"], rel=1e-10)


def test_a_detached_product_by_a_weight_is_not_lost() -> None:
    """Straight-through estimators: the Jacobian is the one that autograd has."""

    class StraightThrough(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rounded = self.weight + ((self.weight * 4).round() / 4 - self.weight).detach()
            return nn.functional.linear(x, rounded, self.bias)

    torch.manual_seed(0)
    model, x = StraightThrough(3, 2).double(), randn(5, 3)
    move = tpv.Displacement({"weight": model.weight.detach() + 0.01}, params="weight")
    assert tpv.estimate(model, x, move).value == pytest.approx(dense_tpv(model, x, move)["total"], rel=1e-10)
