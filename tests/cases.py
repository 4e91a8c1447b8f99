"""Models as people write them, small and in float64, each with a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpv
from tpv.model.linearization import Linearization
from tpv.model.outputs import as_output
from tpv.perturbations.bound import Bound
from tpv.testing import assert_unchanged


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def bound(perturbation: tpv.PerturbationSpec, model: nn.Module) -> Bound:
    """The perturbation at the model's weights."""
    return perturbation.bind(Linearization(model, output=as_output(perturbation.output)))


def settled(model: nn.Module) -> nn.Module:
    """float64, evaluation mode, and norms with statistics and affine parameters away from their defaults."""
    model = model.double().eval()
    generator = seeded(7)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator).double())
    return model


def faults_survived(
    error: type[BaseException],
    places: Iterable[int],
    build: Callable[[], nn.Module],
    use: Callable[[nn.Module], object],
) -> int:
    """How many of the k-th calls of a linear layer could raise and leave the model unchanged, until there was no k-th call any more."""
    original, survived, calls, limit = nn.Linear.forward, 0, 0, 0

    def faulty(self: nn.Linear, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise error("injected")
        return original(self, x)

    for k in places:
        limit, model, calls = k, build(), 0
        with assert_unchanged(model), pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Linear, "forward", faulty)
            try:
                use(model)
                break
            except error:
                survived += 1
    return survived


def filtered(k: Tensor, fit: tpv.Fit, outputs: int) -> Tensor:
    """φ(K), dense."""
    values, vectors = torch.linalg.eigh(k)
    values = values.clamp(min=0)
    return (vectors * fit.filter(values, outputs, values.max().item())) @ vectors.T


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    slow: tuple[str, ...] = ()
    """Parameters that no layer formula can cover, by name."""

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return settled(self.build())


class InPlace(nn.Module):
    """Stale tensors: in-place activations on convolution and 3-d linear outputs, and ``out += shortcut``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.tokens = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn(self.conv1(x)))
        out = self.conv2(x)
        out += x
        tokens = self.tokens(F.relu_(out).flatten(2).transpose(1, 2).contiguous())
        return self.head(tokens.relu_().mean(1))


class Stateful(nn.Module):
    """Counts its calls in buffers, by every means there is, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = InPlace()
        self.register_buffer("added", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(3))

    def forward(self, x):
        self.added += 1
        self.replaced = self.replaced + 1
        self.hidden.data.add_(1)
        return self.inner(x)


def stateful_network() -> nn.Module:
    torch.manual_seed(0)
    model = settled(Stateful())
    model.inner.head.weight.grad = torch.ones_like(model.inner.head.weight)
    model.inner.conv1.requires_grad_(False)
    model.inner.register_forward_hook(lambda *_: None)
    return model


class Repeated(nn.Module):
    """A block called three times, on inputs of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.block(x)))
        x = self.norm(torch.tanh(self.block(x[:, ::2])))
        x = self.conv(torch.tanh(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.block(x).sum(1)


class Tied(nn.Module):
    """One Parameter in an embedding and in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(tokens)))).mean(1)


class FunctionalUse(nn.Module):
    """A weight used through its module and once more by hand, and a raw Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.5, -1.0, 2.0]))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.layer(x)) * self.scale
        return self.head(F.linear(x, self.layer.weight))


class TimeMajor(nn.Module):
    """Rows of (time, batch) in front of a linear layer, time as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))


class Positions(nn.Module):
    """A position embedding computed once for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.positions(torch.arange(x.shape[1]).unsqueeze(0)))).mean(1)


class Hooked(nn.Module):
    """A user's hook that changes a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.layer.register_forward_hook(lambda module, args, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)))


class DataDependent(nn.Module):
    """Control flow that torch.func cannot trace, around a raw Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [row * self.weight if row.sum().item() > 0 else row * self.weight.square() for row in x]
        return self.head(torch.stack(rows))


class Frozen(nn.Module):
    """A frozen layer between two trainable ones, and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last, self.unused = (nn.Linear(3, 3) for _ in range(4))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.frozen(torch.tanh(self.first(x)))))


def conv_net(conv: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(4, 6, 3, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def materialized(build: Callable[[], nn.Module], x: Tensor) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        model = build()
        model(x.float())
        return model

    return built


def _conv_case(name: str, dims: int, size: int, **options: Any) -> Case:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    x = randn(5, 4, *[size] * dims)
    return Case(name, materialized(conv_net(conv, **options), x), lambda: x)


CASES = [
    Case("mlp", lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: randn(5, 4)),
    Case("sequence", lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: randn(5, 7, 4)),
    _conv_case("conv1d", 1, 9),
    _conv_case("conv2d", 2, 7),
    _conv_case("conv3d", 3, 4),
    _conv_case("stride and padding", 2, 8, stride=2, padding=1),
    _conv_case("few positions", 2, 4, bias=False),
    _conv_case("dilation", 2, 8, dilation=2, padding=2),
    _conv_case("groups", 2, 4, groups=2),
    _conv_case("pixel grams", 2, 3, padding=1),
    _conv_case("pixel grams, groups", 1, 4, padding=1, groups=2),
    _conv_case("pixel grams, dilation", 1, 6, padding=2, dilation=2),
    _conv_case("uneven stride", 2, 8, stride=(3, 2), padding=(0, 1)),
    _conv_case("same padding", 2, 6, padding="same"),
    _conv_case("circular", 2, 6, padding=1, padding_mode="circular"),
    _conv_case("reflect", 1, 6, padding=2, padding_mode="reflect"),
    _conv_case("replicate", 2, 5, padding=1, padding_mode="replicate"),
    Case("depthwise", lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), lambda: randn(3, 4, 6, 6)),
    Case("batchnorm1d", lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)), lambda: randn(5, 4)),
    Case("batchnorm2d", lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()), lambda: randn(3, 2, 4, 4)),
    Case("batchnorm3d", lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Tanh(), nn.Flatten()), lambda: randn(3, 2, 2, 3, 3)),
    Case("groupnorm", lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()), lambda: randn(3, 2, 4, 4)),
    Case("layernorm", lambda: nn.Sequential(nn.LayerNorm((5, 4)), nn.Linear(4, 2)), lambda: randn(3, 5, 4)),
    Case("rmsnorm", lambda: nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 2)), lambda: randn(3, 5, 4)),
    Case("embedding", lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3), nn.Tanh()), lambda: torch.tensor([[1, 2, 1, 0], [3, 3, 3, 6]])),
    Case("convolution over folded rows", lambda: nn.Sequential(nn.Flatten(0, 1), nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Unflatten(0, (-1, 4)), nn.Flatten()), lambda: randn(3, 4, 2, 5)),
    Case("in place", InPlace, lambda: randn(4, 3, 5, 5)),
    Case("repeated", Repeated, lambda: randn(4, 6, 4)),
    Case("tied", Tied, lambda: torch.tensor([[1, 2, 1], [3, 0, 6], [5, 5, 5]])),
    Case("keywords", Tied, lambda: {"tokens": torch.tensor([[1, 2, 1], [3, 0, 6]]), "labels": torch.tensor([0, 1])}),
    Case("frozen and unused", Frozen, lambda: randn(4, 3)),
    Case("functional use", FunctionalUse, lambda: randn(4, 4), slow=("layer.weight", "scale")),
    Case("time major", TimeMajor, lambda: randn(4, 4, 3)),
    Case("positions", Positions, lambda: randn(4, 5, 3)),
    Case("hooked", Hooked, lambda: randn(4, 3), slow=("layer.weight", "layer.bias")),
    Case("data dependent", DataDependent, lambda: randn(4, 3), slow=("weight",)),
    Case("transposed convolution", lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 3), nn.Tanh(), nn.Flatten()), lambda: randn(3, 2, 4), slow=("0.weight", "0.bias")),
    Case("packed attention", lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), lambda: randn(3, 5, 4), slow=("self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias")),
    Case("weight norm", lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)), lambda: randn(4, 3), slow=("0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1")),
    Case("recurrent", lambda: LastState(), lambda: randn(3, 4, 2), slow=("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")),
]  # fmt: skip


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


@dataclass(frozen=True)
class Correlated(tpv.Perturbation):
    """One normal number that shifts all weights: neither diagonal nor fixed."""

    def sample(self, at, generator):
        shift = torch.randn((), generator=generator)
        return {name: torch.full_like(w, shift.item()) for name, w in at.items()}
