"""Traces that Torch-Pruning gets wrong, or cannot make: refused or left out, and statistics by hand stay."""

import pytest
import torch
from torch import Tensor, nn

import tpv
from tpv.pruning import PruningConfig

ONE_STEP = PruningConfig(steps=1)


class Shuffle(nn.Module):
    """A channel shuffle by hand behind grouped convolutions, which the trace does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.d, self.e = nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 12, 1, groups=3)
        self.dw, self.f = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        g = self.d(h).relu().unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)
        return self.f((h + self.e(self.dw(g))).relu().mean((2, 3)))


class ByPosition(nn.Module):
    """A factor that depends on a channel's position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.f = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 20, 1), nn.Linear(20, 5)

    def factor(self, h: Tensor) -> Tensor:
        return 1 - 2 * (torch.arange(h.shape[1]) % 2).to(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.f(self.e(h * self.factor(h)[:, None, None]).relu().mean((2, 3)))


class SmallRamp(ByPosition):
    """One that changes little."""

    def factor(self, h: Tensor) -> Tensor:
        return 1 + 0.001 * torch.arange(h.shape[1]).to(h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("build", "group"), [(Shuffle, "dw"), (ByPosition, "a"), (SmallRamp, "a")])
def test_wrong_traces_are_refused_in_every_dtype(build, group: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = build().eval().to(dtype), torch.randn(16, 3, 8, 8).to(dtype)
    with pytest.raises(tpv.TPVError, match=f"the traced graph is wrong at {group}"):
        tpv.prune(model, x, "macs=0.6", config=ONE_STEP)


class NonLocal(nn.Module):
    """Attention over positions whose queries and keys are traced to belong to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.e, self.f = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 20, 1), nn.Linear(20, 5)
        self.q, self.k, self.v = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        attended = v @ (q.mT @ k).softmax(-1).mT
        return self.f(self.e(h + attended.view(len(x), -1, *x.shape[2:])).relu().mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_outside_of_layers_leaves_its_group_out(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = NonLocal().eval().to(dtype), torch.randn(16, 3, 8, 8, dtype=dtype)
    result = tpv.prune(model, x, "params=0.9", config=ONE_STEP)
    assert list(result.steps[-1].removed) == ["e"]
    assert ["multiplied outside of a layer" in why for why in result.excluded.values()] == [True]


class GRN(nn.Module):
    """Global response normalization, by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, width, 1, 1) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        size = h.norm(dim=(2, 3), keepdim=True)
        return h + self.gamma * h * size / (size.mean(1, keepdim=True) + 1e-6)


class RMS(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, h: Tensor) -> Tensor:
        return h * (h.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.scale


class Spatial(nn.Module):
    """Spatial attention by the mean over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, h: Tensor) -> Tensor:
        return h * h.mean(1, keepdim=True).sigmoid()


@pytest.mark.parametrize("statistics", [GRN, RMS, Spatial])
def test_statistics_over_channels_by_hand_stay_prunable(statistics) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        statistics(12),
        nn.Conv2d(12, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    ).eval()
    result = tpv.prune(model, torch.randn(16, 3, 6, 6), "params=0.7", config=ONE_STEP)
    assert set(result.steps[-1].removed) == {"0", "2"}
    assert not result.excluded


@pytest.mark.parametrize("shape", [(-1, 1, 1), (1, -1, 1, 1)])
@pytest.mark.parametrize("width", [4, 12, 40])
def test_parameters_per_channel_of_any_shape(width: int, shape: tuple[int, ...]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 16, 3, padding=1)
            self.scale = nn.Parameter((torch.rand(width) + 0.5).view(shape))
            self.f = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.b((self.a(x) * self.scale).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    result = tpv.prune(Scaled().eval(), torch.randn(16, 3, 8, 8), "params=0.6", config=ONE_STEP)
    assert result.steps[-1].params == sum(p.numel() for p in result.model.parameters())
    assert result.model.scale.numel() == result.model.a.out_channels < width


class Maxout(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, -1)
        return torch.cat([torch.maximum(a, b)] * 2, -1)


class SplitCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        parts = list(h.split((8, 8), -1))
        return torch.cat([*parts, parts[-1] + self.c(parts[-1])], -1)


class First(nn.GRU):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h)[0]


@pytest.mark.parametrize(
    ("middle", "width", "left_out"),
    [(First(16, 12, batch_first=True), 12, {"0"}), (Maxout(), 16, {"0"}), (SplitCat(), 24, {"0", "2.c"})],
)
def test_what_cannot_be_traced_is_left_out(middle: nn.Module, width: int, left_out: set[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), middle, nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, 4)
    ).eval()
    result = tpv.prune(model, torch.randn(8, 5, 6), "params=0.9", config=ONE_STEP)
    assert result.excluded.keys() == left_out
    assert all("Torch-Pruning cannot follow" in why for why in result.excluded.values())
    assert list(result.steps[-1].removed) == ["3"]


def test_the_advice_for_several_outputs_works() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.b(self.a(x).relu())
            return {"cls": h, "box": 2 * h}

    model, x = Heads().eval(), torch.randn(8, 4)
    with pytest.raises(tpv.TPVError, match="no output=, forward=lambda model, batch: "):
        tpv.prune(model, x, "params=0.6", config=ONE_STEP)
    result = tpv.prune(model, x, "params=0.6", forward=lambda m, b: m(b)["cls"], config=ONE_STEP)
    assert result.steps[-1].params_share <= 0.6
