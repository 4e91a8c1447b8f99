"""Which weights Quantization rounds: all that multiply activations, frozen, parametrized and by hand too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tpv
from tpv.testing.unchanged import assert_unchanged

FOUR = tpv.Quantization(4)


def variances(w: Tensor) -> Tensor:
    """Δ²/12 of a symmetric 4-bit grid for each row along the last axis."""
    return ((w.abs().amax(-1, keepdim=True) / 7.5).square() / 12).expand_as(w)


def by_autograd(f: Callable[..., Tensor], *weights: Tensor) -> float:
    """Sum of variance times squared Jacobian, over the examples' mean."""
    jacobians = torch.func.jacrev(f, tuple(range(len(weights))))(*weights)
    total = sum((j.square() * variances(w)).sum() for j, w in zip(jacobians, weights, strict=True))
    return total.item() / len(f(*weights))


def plain(layer: nn.Linear) -> nn.Module:
    return layer


def hooked_weight(layer: nn.Linear) -> nn.Module:
    return nn.utils.weight_norm(layer)


def hooked_spectrum(layer: nn.Linear) -> nn.Module:
    return nn.utils.spectral_norm(layer, n_power_iterations=3)


WRAPPERS = [
    plain, hooked_weight, hooked_spectrum,
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal,
]  # fmt: skip


def wrapped(wrap) -> tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(64, 8).double()
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 3)).double()
    model(x)  # the power iteration of the old hook
    first, last = model.eval()[0], model[2]
    model(x)
    point = (first.weight.detach().clone(), last.weight.detach().clone())
    return model, x, lambda w, v: torch.tanh(x @ w.T + first.bias) @ v.T + last.bias, point


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_parametrized_weights_are_rounded_themselves(wrap) -> None:
    model, x, f, point = wrapped(wrap)
    with assert_unchanged(model):
        result = tpv.estimate(model, x, FOUR, estimator=tpv.Exact())
    assert result.value == pytest.approx(by_autograd(f, *point), rel=1e-9)
    assert list(result.layers) == ["0", "2"]
    assert torch.equal(model[0].weight, point[0])
    actual = tpv.Quantization(4, error="actual")
    rounded = [
        (w / (w.abs().amax(-1, keepdim=True) / 7.5)).round().clamp(-8, 7)
        * w.abs().amax(-1, keepdim=True)
        / 7.5
        for w in point
    ]
    finite = tpv.estimate(model, x, actual, estimator=tpv.MonteCarlo(1)).value
    assert finite == pytest.approx((f(*rounded) - f(*point)).square().sum().item() / 64, rel=1e-9)


def test_the_first_case_has_the_right_value() -> None:
    model, x, *_ = wrapped(plain)
    assert tpv.estimate(model, x, FOUR).value == pytest.approx(0.001644, rel=1e-3)


def test_frozen_layers_are_rounded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)
    ).double()
    x, trainable = torch.randn(64, 8).double(), tpv.Quantization(4, params="4.*")
    expected = tpv.estimate(model.eval(), x, FOUR)
    model[:4].requires_grad_(False)
    with assert_unchanged(model):
        result = tpv.estimate(model, x, FOUR)
        linear = tpv.linearity(model, x, FOUR, draws=2)
    assert result.value == expected.value == pytest.approx(0.00108, rel=1e-2)
    assert result.layers == expected.layers
    assert linear.n_examples == 64
    assert list(tpv.estimate(model, x, trainable).layers) == ["4"]
    noise = tpv.estimate(model, x, tpv.Isotropic(0.1) + FOUR)
    assert list(noise.layers) == ["4"], "Isotropic moves trainable weights only, and so a sum with it"


class Experts(nn.Module):
    """A router, experts in one parameter, a matrix by hand, a table of positions that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 5, 6) / 2)
        self.cell, self.pos_embed = nn.GRUCell(5, 4), nn.Parameter(torch.randn(1, 2, 6))
        self.norm = nn.LayerNorm((2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x, self.router, self.experts, self.cell.weight_ih, self.cell.weight_hh)

    def of(self, x: Tensor, router: Tensor, experts: Tensor, inputs: Tensor, states: Tensor) -> Tensor:
        x = self.norm(x + self.pos_embed).mean(1)
        h = torch.einsum("ne,eoi,ni->no", (x @ router.T).softmax(-1), experts, x)
        cell = {"weight_ih": inputs, "weight_hh": states}
        return torch.func.functional_call(self.cell, cell, (h, h[:, :4].tanh()))


def test_experts_routers_and_cells_are_rounded() -> None:
    torch.manual_seed(0)
    model, x = Experts().double().eval(), torch.randn(7, 2, 6).double()
    point = (model.router, model.experts, model.cell.weight_ih, model.cell.weight_hh)
    result = tpv.estimate(model, x, FOUR)
    expected = by_autograd(lambda *weights: model.of(x, *weights), *(w.detach() for w in point))
    assert result.value == pytest.approx(expected, rel=1e-9)
    total = sum(p.numel() for p in model.parameters())
    counts = {
        "weights": sum(w.numel() for w in point),
        "of": total,
        "not": ["pos_embed", "norm.weight", "norm.bias"],
    }
    assert result.metadata["quantized"] == counts
    assert f"rounds {counts['weights']} of {total} weights; not pos_embed, norm.weight, norm.bias" in str(
        result
    )


@pytest.mark.parametrize(
    "options", [{"granularity": "tensor"}, {"granularity": "group", "group_size": 4}, {}]
)
@pytest.mark.parametrize("error", ["noise", "actual"])
def test_experts_in_every_granularity(options: dict, error: str) -> None:
    torch.manual_seed(0)
    alone = [nn.Linear(6, 5, bias=False).double() for _ in range(3)]
    raw = nn.ParameterDict({"experts": torch.stack([layer.weight.detach() for layer in alone])})
    spec = tpv.Quantization(4, error=error, **options)
    delta = spec.sample(tpv.Weights(raw), torch.Generator())["experts"]
    variance = spec.variance(tpv.Weights(raw))
    assert delta.shape == (3, 5, 6)
    if options.get("granularity") == "tensor":
        return
    for i, layer in enumerate(alone):
        if variance is not None:
            one = spec.variance(tpv.Weights(layer))["weight"]
            assert torch.equal(variance["experts"].expand(3, 5, 6)[i], one.expand(5, 6))
        else:
            assert torch.equal(delta[i], spec.sample(tpv.Weights(layer), torch.Generator())["weight"])


def test_mixtral_has_the_right_value() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 24, "vocab_size": 12, "num_local_experts": 3, "pad_token_id": 0, "head_dim": 8,
        "initializer_range": 0.3,
    }  # fmt: skip
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**settings)).eval()
    result = tpv.estimate(model, [{"input_ids": torch.randint(1, 12, (2, 4))}], FOUR)
    assert result.value == pytest.approx(4.3225, rel=1e-4)
    assert result.metadata["quantized"] == {"weights": 4656, "of": 4704, "not": []}


def test_a_sum_says_what_each_part_rounds() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    parts = tpv.Quantization(4, params="0.weight"), tpv.Quantization(8, params="2.weight")
    result = tpv.estimate(model, torch.randn(4, 3).double(), sum(parts))
    assert [part["weights"] for part in result.metadata["quantized"]] == [18, 30]
    assert "rounds 18 and 30 of 59 weights\n" in str(result)
    same = tpv.estimate(model, torch.randn(4, 3).double(), parts[0] + parts[0])
    assert "rounds 18 of 59 weights; not 2.weight\n" in str(same)
