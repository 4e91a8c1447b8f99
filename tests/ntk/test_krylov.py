"""φ(K) by products, against the matrix."""

from __future__ import annotations

import pytest
import torch
from cases import filtered, randn
from kernels import (
    assert_close,
)
from torch import Tensor

import tpv
from tpv import Ridge
from tpv.ntk.krylov import Krylov


def spectrum_matrix(n: int = 60, decay: float = 1.5) -> Tensor:
    u = torch.linalg.qr(randn(n, n))[0]
    return (u * torch.arange(1, n + 1).double().pow(-decay)) @ u.T


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_a_krylov_fit_is_as_good_as_its_tolerance(tolerance: float) -> None:
    k = spectrum_matrix()
    products: list[int] = []

    def multiply(v: Tensor) -> Tensor:
        products.append(v.shape[1])
        return k @ v

    space, b = Krylov(multiply, 60, torch.device("cpu")), randn(60, 3, seed=2)
    filter_ = lambda e: Ridge(1e-3).filter(e, 60, 1.0)  # noqa: E731
    exact = k @ filtered(k, Ridge(1e-3), 60) @ b
    found = k @ space.apply(filter_, b, tolerance=tolerance)
    assert (found - exact).norm() < 5 * tolerance * exact.norm()
    assert sum(products) == space.basis.shape[1]
    assert_close(space.image, k @ space.basis)
    assert_close(space.basis.T @ space.basis, torch.eye(space.basis.shape[1]).double(), 1e-7)
    before = sum(products)
    again = k @ space.apply(filter_, b, tolerance=tolerance)
    assert (again - exact).norm() < 5 * tolerance * exact.norm()
    assert sum(products) <= before + 32


def test_a_krylov_fit_ends_where_the_span_is_invariant() -> None:
    u = torch.linalg.qr(randn(30, 4))[0]
    k = (u * torch.tensor([4.0, 2.0, 1.0, 0.5]).double()) @ u.T
    space = Krylov(lambda v: k @ v, 30, torch.device("cpu"))
    b = randn(30, 2, seed=3)
    found = space.apply(lambda e: Ridge(0.1).filter(e, 30, 4.0), b, tolerance=1e-10)
    assert_close(k @ found, k @ filtered(k, Ridge(0.1), 30) @ b, 1e-9)
    assert space.basis.shape[1] <= 10
    values, vectors = space.largest(4, b)
    assert_close(values, torch.tensor([4.0, 2.0, 1.0, 0.5]).double(), 1e-9)
    assert_close(k @ vectors, vectors * values, 1e-7)


def test_the_largest_eigenvectors_are_found() -> None:
    k = spectrum_matrix(200, 2.0)
    space = Krylov(lambda v: k @ v, 200, torch.device("cpu"))
    values, vectors = space.largest(8, randn(200, 8, seed=1))
    assert vectors.shape == (200, 8)
    assert space.basis.shape[1] == 16
    assert values[:4].tolist() == pytest.approx([1, 1 / 4, 1 / 9, 1 / 16], rel=3e-2)


def test_a_fit_that_does_not_converge_says_so() -> None:
    space = Krylov(lambda v: spectrum_matrix(60, 0.3) @ v, 60, torch.device("cpu"))
    with pytest.raises(
        tpv.TPVError,
        match=r"has not converged after 1\d products .* use a stronger penalty, fewer steps, or fewer examples",
    ):
        space.apply(lambda e: 1 / (e + 1e-9), randn(60, 1), tolerance=1e-12, limit=10)
