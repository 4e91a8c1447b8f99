"""Small networks with their Jacobians by plain autograd, and label noise on them, for the tests of kernels."""

from __future__ import annotations

from typing import Any

import torch
from cases import filtered, randn, settled
from torch import Tensor, nn

import tpv
from tpv import GradientDescent, Interpolation, Ridge
from tpv.testing import dense_jacobian


def rows_of(jacobian: dict[str, Tensor]) -> Tensor:
    """(nK, P)."""
    return torch.cat([j.reshape(j.shape[0] * j.shape[1], -1) for j in jacobian.values()], 1)


def dense(model: nn.Module, batch: Any, center: bool = False, forward: Any = None) -> Tensor:
    """J by plain autograd, one example and one output at a time."""
    return rows_of(dense_jacobian(model, batch, forward, "centered" if center else "logits"))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def mean_free(z: Tensor) -> Tensor:
    return z - z.mean(-1, keepdim=True)


def mlp(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return settled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)))


def words(ids: list[list[int]]) -> dict[str, Tensor]:
    found = torch.tensor(ids)
    return {"input_ids": found, "attention_mask": (found != 0).long(), "labels": found}


def language_model(tied: bool = True) -> nn.Module:
    torch.manual_seed(2)
    return settled(Tokens(tied))


class Tokens(nn.Module):
    """(N, T, K) with a padding row; ``tied`` trains that row through the head, which PyTorch would not do through the embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(input_ids))))


TRAIN, TEST = randn(10, 4), randn(8, 4, seed=1)
STD = 0.1
FITS = [
    Interpolation(),
    Ridge(0.5),
    Ridge(1e-3),
    GradientDescent(lr=0.3, steps=1),
    GradientDescent(lr=0.3, steps=40),
    GradientDescent(lr=None, steps=10, gamma=0.2),
    GradientDescent(lr=0.2, steps=25, momentum=0.9),
    GradientDescent(lr=0.1, steps=20, momentum=0.5, gamma=0.2),
]


def label_noise(
    fit: tpv.ntk.Fit = FITS[1], data: object = TRAIN, std: float = STD, **options: Any
) -> tpv.LabelNoise:
    return tpv.LabelNoise(std, data, fit, **options)


def value(model: nn.Module, data: object, noise: tpv.Perturbation, **options: Any) -> float:
    return tpv.estimate(model, data, noise, **options).value


def output_changes(j_test: Tensor, j: Tensor, fit: tpv.ntk.Fit, outputs: int | None = None) -> Tensor:
    """Of unit noise: K_te φ(K)."""
    return j_test @ j.T @ filtered(j @ j.T, fit, outputs or len(j))


def flat(delta: Any) -> Tensor:
    return torch.cat([d.reshape(-1) for d in delta.values()])


def z_score(found: tpv.TPVResult, expected: float) -> float:
    assert found.mc_stderr > 0
    return (found.value - expected) / found.mc_stderr


def linear(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False).double()
