"""Models and batches that look ordinary and would give a wrong number: exact, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import randn, settled
from torch import Tensor, nn
from torch.nn.utils import prune

import tpv
from tpv.testing import assert_unchanged, dense_tpv

NOISE = tpv.Isotropic(1.0)


def assert_exact(model: nn.Module, batch: object, **options) -> tpv.TPVResult:
    result = tpv.estimate(model, [batch], NOISE, estimator=tpv.Exact(), **options)
    reference = dense_tpv(model, batch, NOISE, options.get("forward"))
    assert result.value == pytest.approx(reference["total"], rel=1e-10)
    assert {n: e.value for n, e in result.layers.items()} == pytest.approx(
        {n: reference[n] for n in result.layers}, rel=1e-10
    )
    return result


class Ragged(nn.Module):
    """Rows of examples of different lengths, gathered in front of a layer; the ends of the batch are equally long."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, 0] < 9
        out = x.new_zeros(*x.shape[:2], 4)
        out[kept] = torch.tanh(self.rows(x[kept]))
        return self.head(out.sum(1))


def test_ragged_rows_are_not_folded_blindly() -> None:
    torch.manual_seed(0)
    x = randn(4, 3, 3)
    for example, length in enumerate((2, 1, 3, 2)):
        x[example, length:, 0] = 10
    result = assert_exact(Ragged().double(), x)
    assert set(result.metadata["slow_routes"]) == {"rows.weight", "rows.bias"}


def test_time_major_rows_are_seen_when_they_first_come_in_several() -> None:
    class Flattened(Ragged):
        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            return self.head(
                torch.tanh(self.rows(x.transpose(0, 1).reshape(t * n, -1))).reshape(t, n, -1).sum(0)
            )

    torch.manual_seed(0)
    model, first, second = Flattened().double(), randn(3, 1, 3), randn(3, 4, 3, seed=1)
    expected = (dense_tpv(model, first, NOISE)["total"] + dense_tpv(model, second, NOISE)["total"]) / 2
    assert tpv.estimate(model, [first, second], NOISE, estimator=tpv.Exact()).value == pytest.approx(
        expected, rel=1e-10
    )


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_pruned_layers_are_exact_even_if_the_first_batch_shows_nothing() -> None:
    model, x = small(), randn(5, 3)
    prune.random_unstructured(model[0], "weight", 0.3)
    x[0] = x[-1] = 0
    assert_exact(model, x)
    norm = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)).double()
    prune.random_unstructured(norm[0], "weight", 1)
    assert_exact(norm, x)


def test_a_hook_that_the_ends_do_not_show_is_found_on_a_later_batch() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
            self.layer.register_forward_hook(lambda module, args, output: 2 * output)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sum(1, keepdim=True).clamp(min=0) * torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    model, x = Gated().double(), randn(6, 3).abs()
    batches = [-x, x]
    expected = sum(dense_tpv(model, b, NOISE)["total"] for b in batches) / 2
    assert tpv.estimate(model, batches, NOISE, estimator=tpv.Exact()).value == pytest.approx(
        expected, rel=1e-10
    )


def test_a_part_under_no_grad_is_refused() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                z = torch.tanh(self.backbone(x))
            return self.head(z)

    torch.manual_seed(0)
    model = Backbone().double()
    with pytest.raises(tpv.TPVError, match=r"uses backbone\.bias, backbone\.weight under torch\.no_grad\(\)"):
        tpv.estimate(model, randn(4, 3), NOISE)
    model.backbone.requires_grad_(False)
    assert_exact(model, randn(4, 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize(
    "perturbation", [tpv.Quantization(bits=8), tpv.Isotropic(1e-4), tpv.Isotropic(1e-6)], ids=repr
)
def test_half_precision_squares_neither_vanish_nor_overflow(
    perturbation: tpv.Perturbation, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype),
        randn(16, 64).to(dtype),
    )
    half = tpv.estimate(model, x, perturbation, estimator=tpv.Exact()).value
    assert half == pytest.approx(
        tpv.estimate(model.double(), x.double(), perturbation, estimator=tpv.Exact()).value, rel=tolerance
    )


def test_autocast_in_forward_agrees() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        randn(4, 2, 5, 5).float(),
    )

    def cast(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    full, mixed = (
        tpv.estimate(model, x, NOISE, estimator=tpv.Exact(), forward=f).value for f in (None, cast)
    )
    assert mixed == pytest.approx(full, rel=0.03)


def test_plain_lists_are_split_with_the_tensors_beside_them() -> None:
    model, x = small(), randn(6, 3)
    lengths = [1, 2, 3, 1, 1, 2]

    def scaled(model: nn.Module, batch: tuple[Tensor, list[int]]) -> Tensor:
        return model(batch[0]) * torch.tensor(batch[1], dtype=torch.float64).unsqueeze(1)

    expected = assert_exact(model, (x, lengths), forward=scaled).value
    for size in (2, 6):
        drawn = tpv.estimate(
            model, [(x, lengths)], NOISE, estimator=tpv.Exact(), forward=scaled, chunk_size=size
        )
        assert drawn.value == pytest.approx(expected, rel=1e-10)


def test_a_shared_tensor_as_long_as_a_batch_is_noticed() -> None:
    def weighted(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model((batch["x"] * batch["w"].reshape(-1, 1)).sum(1))

    batches = [{"x": randn(n, 3, 3), "w": torch.tensor([1.0, 2.0, 3.0]).double()} for n in (2, 3)]
    with pytest.raises(tpv.TPVError, match="change with the other examples"):
        tpv.estimate(small(), batches, NOISE, forward=weighted)


def test_rows_without_a_batch_axis_take_the_slow_route() -> None:
    class RowByRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.norm(torch.tanh(self.layer(row))) for row in x])

    torch.manual_seed(0)
    assert_exact(RowByRow().double(), randn(4, 4))


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_whose_gradients_are_no_jacobian_are_refused(options: dict[str, bool]) -> None:
    with pytest.raises(tpv.TPVError, match="not a Jacobian"):
        tpv.estimate(nn.Sequential(nn.Embedding(5, 3, **options)), torch.tensor([[1, 1], [2, 0]]), NOISE)


def test_complex_weights_and_inference_tensors_are_refused() -> None:
    model = small()
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex128)))
    with pytest.raises(tpv.TPVError, match="phase is complex"):
        tpv.estimate(model, randn(4, 3), NOISE)
    with torch.inference_mode():
        x = randn(4, 3).clone()
    with pytest.raises(tpv.TPVError, match="inference_mode"):
        tpv.estimate(small(), x, NOISE)


def test_displacement_warns_about_frozen_parameters_and_masking_about_unknown_names() -> None:
    model = small()
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"2 buffers or frozen parameters.*first: '0\.weight'"):
        tpv.estimate(
            model, randn(4, 3), tpv.Displacement({name: p + 1 for name, p in model.state_dict().items()})
        )
    with pytest.raises(tpv.TPVError, match="not a trainable parameter"):
        tpv.estimate(small(), randn(4, 3), tpv.Masking({"0.wieght": torch.zeros(())}, params="*"))


def test_labels_may_be_anywhere() -> None:
    labelled = [(randn(4, 3), torch.zeros(4, device="meta"))]
    assert tpv.estimate(small(), labelled, NOISE).value > 0


def test_an_interrupt_while_hooks_are_installed_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    original, installed = nn.Module.register_forward_hook, []

    def interrupted(self, *args, **options):
        handle = original(self, *args, **options)
        installed.append(handle)
        if len(installed) == 2:
            raise KeyboardInterrupt
        return handle

    model = small()
    with assert_unchanged(model):
        monkeypatch.setattr(nn.Module, "register_forward_hook", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tpv.estimate(model, randn(4, 3), NOISE)
    assert len(installed) == 2


def test_tensors_kept_as_attributes_are_restored() -> None:
    model = small()
    prune.random_unstructured(model[0], "weight", 0.3)
    before = model[0].weight
    tpv.estimate(model, randn(4, 3), NOISE)
    assert model[0].weight is before
    copy.deepcopy(before.detach())


def test_the_metadata_counts_what_moves() -> None:
    for perturbation in (tpv.Quantization(bits=4), tpv.Quantization(bits=4, error="actual")):
        assert tpv.estimate(small(), randn(4, 3), perturbation).metadata["moved_parameters"] == 20
    with pytest.raises(tpv.TPVError, match="both sides share"):
        tpv.stability(small(), randn(4, 3), randn(4, 3), NOISE, generator=torch.Generator())


def test_batchnorm_over_a_single_example_on_the_cpu() -> None:
    class Patches(nn.Module):
        """The gradient of the norm's output is laid out channels last, where torch's backward pass over one example is wrong."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                torch.tanh(self.norm(self.conv(x)).flatten(2).transpose(1, 2).contiguous())
            ).flatten(1)

    torch.manual_seed(0)
    model, x = settled(Patches()), randn(5, 2, 4, 4)
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda w, x: torch.func.functional_call(model, w, (x[None],))[0]), (None, 0)
    )({name: p.detach() for name, p in model.named_parameters()}, x)
    expected = 0.09 * sum(j.square().sum() for j in jacobian.values()).item() / len(x)
    for data, chunk in ((x, None), (x, 1), (list(x.split(1)), None)):
        assert tpv.estimate(model, data, tpv.Isotropic(0.3), chunk_size=chunk).value == pytest.approx(
            expected, rel=1e-9
        )
    assert dense_tpv(model, x, tpv.Isotropic(0.3))["total"] == pytest.approx(expected, rel=1e-9)


def test_caches_of_weights_in_evaluation_mode_hide_no_gradient() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.bias, self.state = nn.Linear(3, 4), nn.Parameter(torch.ones(2, 4)), None
            self.cache: dict[str, Tensor] = {}
            self.calls: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(len(x))
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias.sum(0)
            self.state = x if self.state is None else self.state[: len(x)] * 1
            return torch.tanh(self.layer(x) + self.cache["bias"])

    torch.manual_seed(0)
    model, x = Caching().double(), randn(6, 3)
    with assert_unchanged(model):
        found = tpv.estimate(model, x, NOISE)
    assert found.layers["(model)"].value > 0
    assert (model.cache, model.calls, model.state) == ({}, [], None)
    assert found.value == pytest.approx(dense_tpv(model, x, NOISE)["total"], rel=1e-10)


class OneModuleTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again, self.second.weight = self.first, self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.again(self.first(x).tanh()).tanh())


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_a_module_of_two_names_gets_its_weights_back_after_each_displaced_pass(chunk_size: int) -> None:
    torch.manual_seed(0)
    model, x = OneModuleTwoNames().double(), randn(6, 4)
    right, here = (
        tpv.estimate(model, x, NOISE, estimator=tpv.MonteCarlo(3), chunk_size=n).value
        for n in (6, chunk_size)
    )
    assert here == pytest.approx(right, rel=1e-12)
