"""Dtypes, autocast, chunks, memory that runs out, and language models' numbers of outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import tpv
from tpv.testing import assert_unchanged

NOISE = tpv.Isotropic(0.1)
HALVES = [torch.bfloat16, torch.float16]


def network() -> nn.Module:
    """Layers with a closed form, one that runs again by itself, and a raw parameter."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(6, 8, 3, padding=1)
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.scale = nn.Parameter(torch.rand(8) + 0.5)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(torch.tanh(self.conv(x.transpose(1, 2))).transpose(1, 2))
            x = x + self.attention(x, x, x)[0]
            return self.head(x * self.scale).mean(1)

    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "estimator", [tpv.Exact(), tpv.Hutchinson(1), tpv.MonteCarlo(4)], ids=["exact", "probe", "finite"]
)
def test_half_precision_agrees_with_the_same_weights_in_float64(
    dtype: torch.dtype, estimator: tpv.Estimator
) -> None:
    half, x = network().to(dtype), randn(32, 5, 6).to(dtype)
    expected = tpv.estimate(copy.deepcopy(half).double(), x.double(), NOISE, estimator=estimator)
    with assert_unchanged(half):
        found = tpv.estimate(half, x, NOISE, estimator=estimator)
    assert found.metadata["dtype"] == str(dtype).removeprefix("torch.")
    assert found.value == pytest.approx(expected.value, rel=0.05)
    for name, layer in found.layers.items():
        assert layer.value == pytest.approx(expected.layers[name].value, rel=0.05), name


def test_small_half_precision_gradients_do_not_vanish_when_squared() -> None:
    model = nn.Linear(4, 3).half()
    x = 1e-3 * randn(8, 4)
    found = tpv.estimate(model, x.half(), tpv.Isotropic(0.1, params="weight"))
    assert found.value == pytest.approx(0.01 * 3 * x.square().sum(1).mean().item(), rel=0.01)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_around_the_call(dtype: torch.dtype) -> None:
    model, x = network(), randn(32, 5, 6).float()
    full = tpv.estimate(model, x, NOISE, estimator=tpv.Exact())
    with torch.autocast("cpu", dtype):
        mixed = tpv.estimate(model, x, NOISE, estimator=tpv.Exact())
    assert mixed.value == pytest.approx(full.value, rel=0.03)


@pytest.mark.parametrize("probes", [1, 2, 5])
def test_probes_do_not_depend_on_chunks_or_batches(probes: int) -> None:
    model, x = nn.Linear(4, 5).double(), randn(11, 4)
    values = [
        tpv.estimate(model, list(x.split(b)), NOISE, estimator=tpv.Hutchinson(probes), chunk_size=c).value
        for b, c in ((7, 1), (7, 3), (7, 8), (11, 11), (3, 2))
    ]
    assert values == pytest.approx([values[0]] * 5, rel=1e-12)


class Hungry(nn.Linear):
    """Has memory for five examples."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)

    most = 5


@pytest.mark.parametrize(
    "estimator",
    [tpv.Hutchinson(1), tpv.Hutchinson(2), tpv.Exact(), tpv.MonteCarlo(3), tpv.LinearizedMonteCarlo(3)],
)
def test_out_of_memory_halves_the_chunk_says_so_and_changes_nothing(estimator: tpv.Estimator) -> None:
    torch.manual_seed(0)
    model, x = Hungry(4, 5).double(), randn(13, 4)
    expected = tpv.estimate(model, x, NOISE, estimator=estimator, chunk_size=2)
    with (
        assert_unchanged(model),
        pytest.warns(UserWarning, match="out of memory: continuing with chunk_size="),
    ):
        found = tpv.estimate(model, x, NOISE, estimator=estimator, chunk_size=12)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.n_examples == 13
    assert found.metadata["chunk_size"] == 3


def test_out_of_memory_for_a_single_example_is_told() -> None:
    model = Hungry(4, 5)
    model.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        tpv.estimate(model, torch.ones(4, 4), NOISE)


def language_model(vocabulary: int, **settings: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=16,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.slow
def test_a_tied_language_model_never_holds_a_gradient_of_its_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tpv.jacobian.formulas.embedding import EmbeddingCall

    monkeypatch.setattr(
        EmbeddingCall, "gradients", lambda *_: pytest.fail("the whole vocabulary's gradient was written out")
    )
    model, tokens = language_model(5000), torch.arange(24).reshape(2, 12)
    result = tpv.estimate(model, [{"input_ids": tokens}], NOISE, estimator=tpv.Hutchinson(1))
    assert result.metadata["outputs"] == 12 * 5000
    assert "slow_routes" not in result.metadata
    assert result.layers["transformer.wte"].value > 0


def test_probes_of_a_language_model_average_to_the_exact_value() -> None:
    model = language_model(30).double()
    tokens = torch.randint(0, 30, (64, 4), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": tokens}]
    exact = tpv.estimate(model, data, NOISE, estimator=tpv.Exact())
    drawn = tpv.estimate(model, data, NOISE, estimator=tpv.Hutchinson(1))
    for name, layer in drawn.layers.items():
        assert abs(layer.value - exact.layers[name].value) < 4 * layer.mc_stderr, name


def test_gpt2_layers_are_quantized_like_linear_ones() -> None:
    from transformers.pytorch_utils import Conv1D

    conv, linear = Conv1D(3, 4).double(), nn.Linear(4, 3).double()
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    for error in ("noise", "actual"):
        perturbation = tpv.Quantization(bits=4, error=error)
        assert tpv.estimate(conv, randn(5, 4), perturbation).value == pytest.approx(
            tpv.estimate(linear, randn(5, 4), perturbation).value, rel=1e-10
        )
