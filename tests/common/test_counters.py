"""Random numbers from counters: what they are, and that they are as good as random."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tpv.common.counters import cotangents, normals, seed_of, signs, words

ALL = 2**64 - 1
GOLDEN = [[-1, -1, -1, -1, -1, -1, 1, -1, 1, 1, -1, 1], [-1, -1, -1, -1, 1, 1, -1, -1, 1, -1, -1, 1]]


def rows(n: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + n)


def hashed(x: int) -> int:
    """SplitMix64's finalizer, twice, in Python's own integers."""
    for _ in range(2):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL
        x ^= x >> 31
    return x


def word(seed: int, row: int, column: int, stream: int) -> int:
    start = hashed((seed * 0x9E3779B97F4A7C15 + stream * 0xF1357AEA2E62A9C5) & ALL)
    key = hashed((start + row * 0xD1342543DE82EF95) & ALL)
    return hashed((key + (column + 1) * 0x9E3779B97F4A7C15) & ALL)


def z_score(products: Tensor) -> float:
    """Standard deviations from chance of a mean of n products of independent signs."""
    return products.double().mean().item() * math.sqrt(products.numel())


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 3), (-1, -2), (2**63 + 5, 1)])
def test_words_are_the_hash_of_their_place(seed: int, stream: int) -> None:
    found = words(seed, torch.tensor([0, 1, 10**12]), 3, stream)
    expected = [[word(seed, row, column, stream) for column in range(3)] for row in (0, 1, 10**12)]
    assert [[w & ALL for w in row] for row in found.tolist()] == expected


def test_signs_never_change() -> None:
    assert signs(0, rows(2), 12).tolist() == GOLDEN


def test_signs_are_the_bits_of_words() -> None:
    w = words(5, rows(3), 2)
    expected = [[1 - 2 * (int(w[i, k // 64]) >> (k % 64) & 1) for k in range(100)] for i in range(3)]
    assert signs(5, rows(3), 100).tolist() == expected


@pytest.mark.parametrize(("count", "columns"), [(1, 100), (3, 16), (3, 10), (10, 10), (2, 5000)])
def test_neither_chunks_nor_order_nor_columns_beside_matter(count: int, columns: int) -> None:
    together = torch.stack(list(cotangents(3, rows(9), count, columns)), 1)
    order = torch.tensor([4, 8, 0, 1, 7, 2, 3, 6, 5])
    for chunk in order.split(4):
        assert torch.equal(torch.stack(list(cotangents(3, chunk, count, columns)), 1), together[chunk])
    assert torch.equal(signs(3, rows(9), 70)[:, :50], signs(3, rows(9), 50))


@pytest.mark.parametrize("other", ["row", "column", "word", "seed", "stream"])
def test_signs_are_uncorrelated_however_places_differ(other: str) -> None:
    n, k = 2000, 1024
    s = signs(0, rows(n + 1), k)
    pairs = {
        "row": lambda: (s[1:], s[:-1]),
        "column": lambda: (s[:, 1:], s[:, :-1]),
        "word": lambda: (s[:, 64:], s[:, :-64]),
        "seed": lambda: (s, signs(1, rows(n + 1), k)),
        "stream": lambda: (s, signs(0, rows(n + 1), k, 1)),
    }
    a, b = pairs[other]()
    assert abs(z_score(a * b)) < 4
    assert abs(z_score(a)) < 4


def test_all_pairs_of_rows_and_of_columns_scatter_as_by_chance() -> None:
    s = signs(11, rows(1024), 1024).double()
    for matrix in (s @ s.T, s.T @ s):
        off = matrix[torch.triu(torch.ones_like(matrix), 1) == 1] / math.sqrt(1024)
        assert off.abs().max() < 6.5
        expected = math.sqrt(2 / len(off))  # of the mean of squares of standard normals
        assert abs(off.square().mean().item() - 1) < 4 * expected


@pytest.mark.parametrize(("count", "columns"), [(1, 5), (2, 4), (3, 8), (2, 5), (4, 7), (7, 7), (2, 12)])
def test_second_moment_is_the_identity(count: int, columns: int) -> None:
    n = 40_000
    for v in cotangents(1, rows(n), count, columns):
        gap = v.double().T @ v.double() / n - torch.eye(columns)
        assert gap.abs().max() < 4.5 * 2 / math.sqrt(n)  # |vᵢvⱼ| ≤ 2


@pytest.mark.parametrize(
    ("count", "columns"), [(2, 2), (3, 3), (10, 10), (64, 64), (5, 64), (7, 100), (2, 4097)]
)
def test_several_are_orthogonal_and_of_length_root_k(count: int, columns: int) -> None:
    if (count, columns) == (2, 4097):
        count = 65
    v = torch.stack(list(cotangents(2, rows(6), count, columns)), 1).double()
    gram = v @ v.transpose(1, 2)
    torch.testing.assert_close(gram, columns * torch.eye(count).double().expand(6, -1, -1), rtol=0, atol=1e-9)
    assert (v != v[:1]).any()


def test_more_than_all_are_all() -> None:
    assert len(list(cotangents(0, rows(2), 9, 5))) == 5


def test_of_many_columns_they_are_independent_signs() -> None:
    first, second = cotangents(0, rows(3), 2, 5000)
    assert torch.equal(first, signs(0, rows(3), 5000))
    assert torch.equal(second, signs(0, rows(3), 5000, 1))


@pytest.mark.parametrize("columns", [4, 7])
def test_every_choice_of_rows_is_as_frequent(columns: int) -> None:
    n = 20_000
    sums = torch.stack(list(cotangents(4, rows(n), 1 + columns // 2, columns)), 1)
    unflipped = sums.double() * signs(4, rows(n), columns, -1).unsqueeze(1)
    constant = (unflipped == 1).all(2).double().mean(0)  # the matrix's first row, of ones
    deviation = math.sqrt((1 / columns) * (1 - 1 / columns) / n)
    assert (constant - 1 / columns).abs().max() < 4 * deviation


def test_normals_have_the_moments_and_quantiles_of_normals() -> None:
    x = normals(0, rows(1000), 1001)
    assert x.shape == (1000, 1001)
    n = x.numel()
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(x.pow(power).mean().item() - moment) < 4 * math.sqrt(spread / n)
    for p in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = (x < math.sqrt(2) * torch.erfinv(torch.tensor(2 * p - 1).double())).double().mean().item()
        assert abs(below - p) < 4 * math.sqrt(p * (1 - p) / n)
    for a, b in (
        (x[1:], x[:-1]),
        (x[:, 1:], x[:, :-1]),
        (x[:, :500], x[:, 501:1001]),
        (x, normals(1, rows(1000), 1001)),
    ):
        assert abs((a * b).mean().item()) < 4 / math.sqrt(a.numel())


def test_a_generator_gives_its_seed_by_one_draw() -> None:
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = seed_of(a)
    assert first == seed_of(b)
    assert first != seed_of(a)
    assert seed_of(17) == 17


@pytest.mark.cuda
@pytest.mark.parametrize(("count", "columns"), [(1, 100), (3, 16), (3, 10), (10, 10), (2, 5000)])
def test_they_are_the_same_bits_on_cuda(count: int, columns: int) -> None:
    there = cotangents(3, rows(9).cuda(), count, columns)
    for a, b in zip(there, cotangents(3, rows(9), count, columns), strict=True):
        assert torch.equal(a.cpu(), b)
    assert torch.allclose(
        normals(0, rows(9).cuda(), 100).cpu(), normals(0, rows(9), 100), rtol=1e-13, atol=1e-15
    )
