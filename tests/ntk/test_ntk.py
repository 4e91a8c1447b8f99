"""The kernel is JJᵀ of the dense Jacobian, whatever the route, the blocks and the batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case, Stateful, faults_survived, randn, seeded, settled
from kernels import assert_close, dense, language_model, mean_free, mlp, rows_of, words
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset
from zoo import ZOO, Architecture

import tpv
from tpv import NTK
from tpv.jacobian.fallback.whole_model import vmappable
from tpv.jacobian.routes.table import Kind
from tpv.model.batches import batch_size, narrow
from tpv.ntk.jacobian import blocks
from tpv.testing import assert_unchanged, dense_jacobian

IDS = [case.name for case in CASES]
NAMES = """BERT; GPT-2; T5; ViT; EfficientNet; SegFormer; LSTM; MultiheadAttention; nanoGPT; weight norm; raw parameters; sharing; Mixer;
patches after BatchNorm; Siamese; deep sets; graph network; bilinear; compiled in part; LoRA on BERT"""
SPREAD = [a for a in ZOO if a.name in re.split(r";\s", NAMES)]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def reversed_mode(model: nn.Module, batch: Any, read: Callable[[Tensor], Tensor] = lambda z: z) -> Tensor:
    """J by ``torch.func.jacrev`` over the whole batch."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})
    with vmappable():
        found = jacrev(lambda w: read(functional_call(model, w, args, kwargs)).reshape(-1))(trained)
    return torch.cat([j.reshape(len(j), -1) for j in found.values()], 1)


def matrix_free(ntk: NTK) -> NTK:
    """The same kernel by products alone."""
    names = set(ntk.names)
    options = {"center": ntk.train.center, "params": lambda name, _: name in names}
    return NTK(ntk.lin, ntk.train.data, dense=False, **options)


def assert_is_the_kernel(ntk: NTK, j: Tensor) -> None:
    """The matrix, its products, and its spectrum."""
    k = j @ j.T
    v = randn(len(j), 3, seed=9)
    assert ntk.shape == k.shape
    assert_close(ntk.matrix, k)
    assert_close(ntk @ v, k @ v)
    assert_close(ntk @ v[:, 0], k @ v[:, 0])
    values, vectors = ntk.eigh()
    assert (values.diff() <= 0).all()
    assert (values >= 0).all()
    assert_close(values, torch.linalg.eigvalsh(k).flip(0).clamp(min=0))
    assert_close((vectors * values) @ vectors.T, k)
    free = matrix_free(ntk)
    assert_close(free @ v, k @ v)
    assert_close(free @ v[:, 0], k @ v[:, 0])
    assert free._matrix is None


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return settled(
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 4),
        )
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_kernels_of_all_cases(case: Case) -> None:
    model, batch = case.model(), case.batch()
    with assert_unchanged(model):
        ntk = NTK(model, [batch], center=False)
        assert_is_the_kernel(ntk, dense(model, batch))
    assert set(ntk.rows.sweep.table.slow) == set(case.slow)


def test_the_cases_go_by_every_route() -> None:
    """Else the test before this one would say less than it seems."""

    def routes(name: str) -> set[str]:
        case = case_named(name)
        ntk = NTK(case.model(), [case.batch()], center=False)
        assert ntk.matrix.isfinite().all()
        return {re.sub(" of (?!the).*", "", str(route)) for route in ntk.rows.sweep.table.routes.values()}

    assert routes("recurrent") == {"local gradients"}
    assert "per-example gradients of the whole model" in routes("functional use")
    assert "per-example gradients of the whole model, one by one" in routes("data dependent")


@pytest.mark.parametrize(
    "name", ["mlp", "batchnorm2d", "repeated", "tied", "functional use", "weight norm", "packed attention"]
)
@pytest.mark.parametrize("center", [False, True])
def test_against_reverse_mode_over_the_whole_batch(name: str, center: bool) -> None:
    case = case_named(name)
    model, batch = case.model(), case.batch()
    j = reversed_mode(model, batch, mean_free if center else lambda z: z)
    assert_is_the_kernel(NTK(model, [batch], center=center), j)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("architecture", SPREAD, ids=[a.name for a in SPREAD])
def test_real_architectures(architecture: Architecture) -> None:
    with architecture.context():
        model, batch = architecture.model(), architecture.batch()
        batch = narrow(batch, 0, 2, batch_size(batch))
        with assert_unchanged(model):
            ntk = NTK(model, [batch], center=False, forward=architecture.forward)
            found = ntk.matrix
        j = dense(model, batch, forward=architecture.forward)
        assert_close(found, j @ j.T, 1e-9)
        v = randn(len(j), 1, seed=5)
        assert_close(matrix_free(ntk) @ v, j @ (j.T @ v), 1e-9)


def test_the_spread_is_all_there() -> None:
    assert len(SPREAD) >= 15


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [5]])
def test_batches_of_any_size_with_batchnorm(sizes: list[int]) -> None:
    model, x = conv_net(), randn(5, 2, 5, 5)
    assert_is_the_kernel(NTK(model, list(x.split(sizes)), center=True), dense(model, x, center=True))
    assert_is_the_kernel(
        NTK(model, list(x.split(sizes)), center=True, chunk_size=2), dense(model, x, center=True)
    )


def test_loaders_of_tuples_with_a_short_last_batch() -> None:
    model, x = mlp(), randn(7, 4)
    loader = DataLoader(TensorDataset(x, torch.arange(7)), batch_size=3)
    assert_is_the_kernel(NTK(model, loader, center=False), dense(model, x))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_padded_positions_and_padding_rows_are_zero(tied: bool, center: bool) -> None:
    """Batches are mappings of 3 and of 2 tokens."""
    model = language_model(tied)
    parts = [words([[1, 2, 0], [3, 4, 5]]), words([[6, 1], [2, 0], [3, 3]])]
    dense_rows, trained = [], dict(model.named_parameters())
    for part in parts:
        batch = {k: v for k, v in part.items() if k != "labels"}
        read = mean_free if center else (lambda z: z)
        j = reversed_mode(model, batch, lambda z: read(z) * batch["attention_mask"].unsqueeze(2))  # noqa: B023
        assert next(iter(trained)) == "embedding.weight"
        j[:, :4] = 0
        dense_rows.append(j)
    j = torch.cat(dense_rows)
    ntk = NTK(model, parts, center=center)
    assert ntk.train.examples == 5
    assert ntk.shape == (12 * 7, 12 * 7)
    assert ntk.train.outputs == 10 * 7
    assert ntk.train.dimensions == 10 * (6 if center else 7)
    assert_is_the_kernel(ntk, j)
    assert (ntk.matrix[14:21] == 0).all()
    assert (ntk.pull(randn(84, 2))["embedding.weight"][:, 0] == 0).all()
    assert_close(ntk.cross(parts[1:]), (j @ j.T)[42:])


class Scalar(nn.Module):
    def __init__(self, axis: bool) -> None:
        super().__init__()
        self.inner, self.axis = mlp(1), axis

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return z if self.axis else z.squeeze(1)


@pytest.mark.parametrize("axis", [True, False])
def test_a_single_output_is_never_centered(axis: bool) -> None:
    model, x = Scalar(axis), randn(5, 4)
    ntk = NTK(model, x)
    assert_is_the_kernel(ntk, reversed_mode(model, x))
    assert ntk.train.dimensions == ntk.train.outputs == 5


@pytest.mark.parametrize(
    ("params", "chosen"),
    [
        ("0.*", ["0.weight", "0.bias"]),
        ("*.weight", ["0.weight", "2.weight"]),
        (lambda n, w: w.ndim == 1, ["0.bias", "2.bias"]),
    ],
)
def test_some_parameters(params: Any, chosen: list[str]) -> None:
    model, x = mlp(), randn(5, 4)
    j = rows_of({n: g for n, g in dense_jacobian(model, x).items() if n in chosen})
    ntk = NTK(model, x, params=params, center=False)
    assert ntk.names == chosen
    assert_is_the_kernel(ntk, j)


def test_frozen_parameters_stay_out_and_parts_add_up() -> None:
    model, x = mlp(), randn(5, 4)
    parts = [NTK(model, x, params=p).matrix for p in ("0.*", "2.*")]
    assert_close(parts[0] + parts[1], NTK(model, x).matrix)
    model[0].requires_grad_(False)
    assert_close(NTK(model, x).matrix, parts[1])


def test_other_inputs() -> None:
    model, x, other = conv_net(), randn(5, 2, 5, 5), randn(4, 2, 5, 5, seed=3)
    j, j_other = (dense(model, t, center=True) for t in (x, other))
    ntk = NTK(model, list(x.split(2)))
    with assert_unchanged(model):
        assert_close(ntk.cross(list(other.split(3))), j_other @ j.T)
    assert_close(ntk.cross(x), ntk.matrix)
    delta = ntk.pull(randn(20, 2, seed=4))
    flat = torch.cat([d.flatten(1) for d in delta.values()], 1)
    assert_close(flat, randn(20, 2, seed=4).T @ j)
    assert_close(ntk.push(delta, list(other.split(3))), j_other @ flat.T)


def test_a_function_of_the_outputs_and_a_forward() -> None:
    model, x = mlp(), randn(5, 4)
    ntk = NTK(
        model,
        [{"a": x, "b": x}],
        output=lambda z: z[:, :2],
        forward=lambda model, batch: model(batch["a"] + batch["b"]),
        center=False,
    )
    assert_is_the_kernel(ntk, reversed_mode(model, 2 * x, lambda z: z[:, :2]))


def test_blocks_are_whole_parameters_or_slices() -> None:
    sizes = [("a", 3), ("b", 12), ("c", 2), ("d", 5)]
    for width in range(1, 25):
        found = list(blocks(sizes, width))
        assert all(0 < sum(stop - start for _, start, stop in block) <= width for block in found)
        covered = [(name, i) for block in found for name, start, stop in block for i in range(start, stop)]
        assert covered == [(name, i) for name, size in sizes for i in range(size)]


@pytest.mark.parametrize(
    "name", ["mlp", "batchnorm2d", "tied", "functional use", "recurrent", "data dependent", "positions"]
)
@pytest.mark.parametrize("columns", [1, 5, 17])
def test_blocks_of_columns_give_the_same(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_named(name)
    model, batch = case.model(), case.batch()
    j = dense(model, batch)
    monkeypatch.setattr("tpv.ntk.jacobian.GRAM_BYTES", 8 * len(j) * columns)
    with assert_unchanged(model):
        ntk = NTK(model, [batch], center=False)
        assert_close(ntk.matrix, j @ j.T)
    assert_close(
        ntk.cross([narrow(batch, 0, 1, batch_size(batch))]), (j @ j.T)[: len(j) // batch_size(batch)]
    )


def test_gradients_by_large_parameters_are_written_out_for_fewer_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = mlp(), randn(9, 4)
    expected, seen = NTK(model, x).matrix, []
    monkeypatch.setattr("tpv.ntk.operator.GRAM_BYTES", 2 * model[0].weight.nbytes)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return model(batch)

    ntk = NTK(model, x, forward=forward)
    assert ntk.chunk_size == 2
    seen.clear()
    assert_close(ntk.matrix, expected)
    assert max(seen) <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_weights_make_a_kernel_in_float32(dtype: torch.dtype) -> None:
    model, x = mlp(), randn(5, 4)
    expected = NTK(model, x).matrix
    ntk = NTK(model.to(dtype), x.to(dtype))
    tolerance = {torch.float32: 1e-5}.get(dtype, 0.05)
    assert ntk.matrix.dtype == torch.float32
    assert_close(ntk.matrix.double(), expected, tolerance)
    v = randn(15, 2)
    assert_close((matrix_free(ntk) @ v).double(), expected @ v, 2 * tolerance)


def test_weights_of_several_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)).double())

    torch.manual_seed(0)
    model, x = Mixed(), randn(5, 4).float()
    expected = NTK(model, x).matrix
    assert expected.dtype == torch.float64
    monkeypatch.setattr("tpv.ntk.jacobian.GRAM_BYTES", 8 * 15 * 4)
    assert_close(NTK(model, x).matrix, expected)
    assert_close(NTK(model.double(), x.double()).matrix, expected, 1e-5)


def test_the_text_says_what_it_is() -> None:
    model, x = mlp(), randn(5, 4)
    assert repr(NTK(model, x)) == "NTK(5 examples, 15 outputs, 51 parameters, float64, dense)"
    assert (
        repr(NTK(model, x, params="0.*", dense=False))
        == "NTK(5 examples, 15 outputs, 30 parameters, float64, matrix-free)"
    )


def test_nothing_runs_before_it_is_asked_for_and_once_only() -> None:
    model, x, seen = mlp(), randn(5, 4), []
    model.register_forward_hook(lambda *_: seen.append(1))
    ntk = NTK(model, x)
    first = ntk.matrix
    seen.clear()
    assert ntk.matrix is first
    assert ntk.eigh()[0] is ntk.eigh()[0]
    assert not seen


USES = [
    lambda ntk, x: ntk.matrix,
    lambda ntk, x: ntk.cross(x),
    lambda ntk, x: ntk.push(ntk.pull(randn(ntk.shape[0], 1))),
]


@pytest.mark.parametrize("use", USES, ids=["matrix", "cross", "products"])
def test_a_stateful_model_is_restored(use: Callable[[NTK, Tensor], object]) -> None:
    torch.manual_seed(0)
    model, x = settled(Stateful()), randn(3, 3, 4, 4)
    model.inner.head.weight.grad = torch.ones_like(model.inner.head.weight)
    with assert_unchanged(model):
        use(NTK(model, x, chunk_size=2), x)


@pytest.mark.parametrize("use", USES, ids=["matrix", "cross", "products"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_faults_leave_the_model_unchanged(
    use: Callable[[NTK, Tensor], object], error: type[BaseException]
) -> None:
    x = randn(3, 3, 4, 4)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return settled(Stateful())

    places = [*range(1, 8), *range(8, 60, 5)]
    survived = faults_survived(error, places, build, lambda model: use(NTK(model, x, chunk_size=2), x))
    assert survived >= 8


def test_a_kernel_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), randn(5, 4)
    ntk = NTK(model, x)
    assert ntk.dense_bytes == 15**2 * (8 + 4 * 8) + 2 * 15 * 51 * 8
    monkeypatch.setattr("tpv.ntk.operator.available_bytes", lambda device: 1000)
    sentence = r"5 examples × 3 outputs takes 0\.0 GiB written out, and 0\.0 GiB are free: give fewer examples, .*dense=False"
    with pytest.raises(tpv.TPVError, match=sentence):
        ntk.matrix  # noqa: B018
    with pytest.raises(tpv.TPVError, match=sentence):
        ntk.cross(x)
    assert (NTK(model, x, dense=False) @ randn(15)).shape == (15,)


def test_large_kernels_are_not_written_out_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), randn(5, 4)
    assert NTK(model, x).dense
    monkeypatch.setattr("tpv.ntk.operator.DENSE_BYTES", 0)
    assert not NTK(model, x).dense
    assert NTK(model, x, dense=True).dense


@pytest.mark.parametrize("dense", [True, False])
def test_shuffled_data_is_refused(dense: bool) -> None:
    model = mlp()
    loader = DataLoader(TensorDataset(randn(6, 4)), batch_size=2, shuffle=True, generator=seeded(0))
    with pytest.raises(
        tpv.TPVError,
        match="comes in another order, or changed, from one pass to the next: switch off shuffling",
    ):
        NTK(model, loader, dense=dense) @ randn(18)


def test_data_that_changed_are_refused() -> None:
    model, x = mlp(), randn(5, 4)
    ntk = NTK(model, x)
    x += 1
    with pytest.raises(tpv.TPVError, match="or changed"):
        ntk.matrix  # noqa: B018


def one_shot() -> Iterator[Tensor]:
    yield randn(2, 4)


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        (torch.zeros(0, 4).double(), {}, "data is an empty tensor"),
        ([], {}, "the training data is empty: it gave no batch"),
        (one_shot(), {}, "one-shot iterator"),
        (randn(3, 4) * float("nan"), {}, "the batch holds NaN"),
        (randn(3, 4), {"params": "9.*"}, "matches no trainable parameter"),
        (randn(3, 4), {"output": "logit"}, "Did you mean 'logits'"),
        ([words([[0, 0]])], {}, "every position of the training data is padding: there is nothing to fit"),
    ],
)
def test_bad_input(data: Any, options: dict[str, Any], sentence: str) -> None:
    model = language_model() if isinstance(data, list) and data else mlp()
    with pytest.raises(tpv.TPVError, match=sentence):
        NTK(model, data, **options)


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(tpv.TPVError, match="this kernel has 15 rows, and the vectors have the shape"):
        NTK(mlp(), randn(5, 4)) @ randn(14)


def test_a_block_that_does_not_repeat_goes_by_the_whole_model() -> None:
    """A state outside of attributes that can be put back, which matters from the second batch on."""

    class Mode:
        doubled = False

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.mode = nn.Parameter(randn(4)), Mode()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * (2 if self.mode.doubled else 1)

    class Switching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled, self.head = Scaled(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            self.scaled.mode.doubled = bool(x[0, 0] > 10)
            z = self.head(torch.tanh(self.scaled(torch.tanh(self.scaled(x)))))
            self.scaled.mode.doubled = False
            return z

    torch.manual_seed(0)
    model, parts = Switching(), [randn(3, 4), randn(3, 4, seed=1) + 20]
    ntk = NTK(model, parts, center=False)
    j = torch.cat([dense(model, part) for part in parts])
    assert_close(ntk.matrix, j @ j.T)
    assert str(ntk.rows.sweep.table.routes["scaled.weight"]).startswith(Kind.WHOLE_MODEL.value)
