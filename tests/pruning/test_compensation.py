"""Re-fits in closed form against dense least squares, on networks where the answer is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from cases import randn, settled
from torch import Tensor, nn
from torch.nn import functional as F

import tpv
from tpv.model.outputs import as_output
from tpv.pruning.channels.conversion import channel_group
from tpv.pruning.channels.groups import ChannelGroup
from tpv.pruning.channels.surgery import kept_outputs, remove
from tpv.pruning.channels.tracing import all_groups, trace
from tpv.pruning.repair import least_squares
from tpv.pruning.repair.compensation import _bias_setter, _correction, _Observed, compensate
from tpv.pruning.repair.curves import measure_curve, widths_of
from tpv.pruning.repair.joins import joins
from tpv.pruning.repair.least_squares import (
    RowMoments,
    SplitMoments,
    error,
    fit,
    fittable,
    input_rows,
    output_rows,
)

LAYERS = [
    (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), bias=False), (4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2), (4, 7, 6)),
    (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 5)),
    (lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False), (4, 5, 5)),
    (lambda: nn.Conv2d(4, 3, 3, padding=(2, 1), padding_mode="circular"), (4, 5, 5)),
    (lambda: nn.Conv1d(4, 3, 3, padding=2, padding_mode="reflect"), (4, 9)),
    (lambda: nn.Conv1d(4, 3, 4, padding="same", dilation=2), (4, 9)),
    (lambda: nn.Conv3d(2, 3, 2, padding=1, padding_mode="replicate", stride=2), (2, 4, 5, 4)),
    (lambda: nn.Linear(5, 3), (5,)),
    (lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    (lambda: nn.Linear(5, 3), (2, 3, 5)),
]  # fmt: skip


def weights(layer: nn.Module) -> Tensor:
    return layer.weight.detach().reshape(least_squares.groups_of(layer), -1, layer.weight[0].numel())


@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_rows_times_weights_are_the_outputs(build, shape) -> None:
    layer, x = build().double(), randn(40, *shape)
    y = layer(x).detach()
    product = torch.einsum("rgd,god->rgo", input_rows(layer, x, slice(None)), weights(layer)).flatten(1)
    bias = 0 if layer.bias is None else layer.bias.detach()
    torch.testing.assert_close(product + bias, output_rows(layer, y))
    assert torch.equal(
        input_rows(layer, x, slice(32, 64)), input_rows(layer, x, slice(None))[32 * len(product) // 40 :]
    )


def test_many_positions_are_sampled_over_the_whole_image() -> None:
    at = least_squares.positions(50, 32 * 31)
    assert at.shape == (50, 128)
    assert all(len(set(row)) > 110 for row in at.tolist())
    assert (at.min(), at.max()) == (at.min().clamp(max=8), at.max().clamp(min=32 * 31 - 8))
    assert torch.bincount(at.flatten() % 31, minlength=31).min() > 100  # every column
    assert torch.equal(least_squares.positions(3, 7), torch.arange(7).expand(3, 7))
    layer, x = nn.Conv2d(3, 4, 3, padding=1).double(), randn(4, 3, 20, 20)
    product = (
        torch.einsum("rgd,god->rgo", input_rows(layer, x, slice(None)), weights(layer)).flatten(1)
        + layer.bias
    )
    torch.testing.assert_close(product, output_rows(layer, layer(x)))


@pytest.mark.parametrize(("build", "shape"), LAYERS)
@pytest.mark.parametrize("intercept", [True, False])
def test_fit_is_the_ridge_regression_of_numpy(build, shape, intercept) -> None:
    layer, x = build().double(), randn(64, *shape)
    y = torch.tanh(layer(x)).detach() + 0.3
    sums = SplitMoments.zero(layer)
    for part in (slice(0, 30), slice(30, 64)):
        sums.update(x[part], output_rows(layer, y[part]), len(x[part]))
    moments = sums.all
    moments = moments if intercept else moments.uncentered()
    ridge = 0.1
    w, b = fit(moments, weights(layer), ridge)
    rows, targets = (
        input_rows(layer, x, slice(None)).numpy(),
        output_rows(layer, y).unflatten(1, (w.shape[0], -1)).numpy(),
    )
    total = 0.0
    for g in range(w.shape[0]):
        a, t, w0 = rows[:, g], targets[:, g], weights(layer)[g].numpy()
        shift = a.mean(0) if intercept else np.zeros(a.shape[1])
        up = t.mean(0) if intercept else np.zeros(t.shape[1])
        penalty = np.sqrt(ridge * len(a) * np.square(a - shift).mean())
        stacked = np.concatenate([a - shift, penalty * np.eye(a.shape[1])])
        solution, *_ = scipy.linalg.lstsq(stacked, np.concatenate([t - up, penalty * w0.T]))
        np.testing.assert_allclose(w[g], solution.T, atol=1e-9)
        np.testing.assert_allclose(b[g], up - solution.T @ shift, atol=1e-9)
        total += np.square(a @ solution + b[g].numpy() - t).sum(1).mean()
    assert error(moments, w, b) == pytest.approx(total)


def test_held_out_examples_choose_the_ridge() -> None:
    layer = nn.Linear(30, 2).double()
    for noise, expected in ((0.0, 1e-4), (30.0, 1.0)):
        x = randn(80, 30)
        sums = SplitMoments.zero(layer)
        sums.update(x, layer(x).detach() + noise * randn(80, 2, seed=5) + 0.5 * x[:, :2], 80)
        assert (sums.fitted.rows, sums.held_out.rows) == (60, 20)
        assert sums.best_ridge(weights(layer)) == expected
    assert SplitMoments(layer, RowMoments.zero(layer), sums.fitted).best_ridge(weights(layer)) == 1.0


def test_constant_and_offset_inputs() -> None:
    """A dead channel, one of constant 1e6, and an offset a thousand times the spread."""
    layer = nn.Linear(3, 1).double()
    x = torch.stack([torch.zeros(50), torch.full((50,), 1e6), 1000 + torch.randn(50)], 1).double()
    sums = SplitMoments.zero(layer)
    y = layer(x).detach() + x[:, 2:]
    sums.update(x, y, 50)
    for moments in (sums.fitted, sums.fitted.uncentered()):
        w, b = fit(moments, weights(layer), 1e-4)
        assert w.isfinite().all()
        assert b.isfinite().all()
    only_constant = sums.fitted.restricted(torch.tensor([0, 1]))
    assert fit(only_constant, weights(layer)[..., :2], 1e-4)[0].isfinite().all()


# networks with a duplicated channel, which nobody misses


def duplicated(layer: nn.Module, producers: list[nn.Module], a: int, b: int) -> None:
    with torch.no_grad():
        for module in [layer, *producers]:
            for tensor in [*module.parameters(), *(t for t in module.buffers() if t.ndim)]:
                tensor[b] = tensor[a]


def conv_bn() -> nn.Module:
    m = settled(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    )
    duplicated(m[0], [m[1]], 1, 4)
    return m


def flattened() -> nn.Module:
    m = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4))
        .double()
        .eval()
    )
    duplicated(m[0], [], 1, 4)
    return m


def separable() -> nn.Module:
    m = settled(
        nn.Sequential(
            nn.Conv2d(3, 6, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(True),
            nn.Conv2d(6, 6, 3, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(True),
            nn.Conv2d(6, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 4),
        )
    )
    duplicated(m[0], [m[1], m[3], m[4]], 1, 4)
    return m


def group_norm() -> nn.Module:
    """One norm group for each channel, so that it does not mix."""
    m = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
        .double()
        .eval()
    )
    duplicated(m[0], [m[1]], 1, 4)
    return m


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a, self.n1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.n2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n0(self.stem(x)))
        y = self.n2(self.b(F.relu(self.n1(self.a(x)))))
        y += x
        x = torch.relu_(y)
        return self.head((self.c(x) + x).mean((2, 3)))


def residual() -> nn.Module:
    m = settled(Residual())
    duplicated(m.a, [m.n1], 1, 4)
    return m


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 5, 1), nn.Conv2d(11, 7, 3)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1).relu()
        return self.head(self.c(x).relu().mean((2, 3)))


def concat() -> nn.Module:
    m = Concatenated().double().eval()
    duplicated(m.a, [], 1, 4)
    return m


IMAGES = randn(40, 3, 8, 8)


def groups_of(model: nn.Module, x: Any) -> dict[str, ChannelGroup]:
    return {g.name: g for g in map(channel_group, all_groups(trace(model, x[:2])))}


def without(
    model: nn.Module, x: Tensor, name: str, channels: list[int]
) -> tuple[nn.Module, dict[str, Tensor]]:
    groups = list(groups_of(model, x).values())
    name = next(g.name for g in groups if any((m.module, m.role) == (name, "producer") for m in g.members))
    return remove(model, x[:2], groups, {name: channels}), kept_outputs(groups, {name: channels})


def moved(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return (a(x) - b(x)).square().sum(1).mean().item()


@pytest.mark.parametrize(
    ("build", "root"),
    [(conv_bn, "0"), (flattened, "0"), (separable, "0"), (residual, "a"), (concat, "a")],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_a_duplicated_channel_is_not_missed(build: Callable[[], nn.Module], root: str, monkeypatch) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (1e-12,))
    torch.manual_seed(0)
    model = build()
    pruned, kept = without(model, IMAGES, root, [1])
    before = moved(pruned, model, IMAGES)
    compensate(pruned, model, list(IMAGES.split(16)), kept)
    assert moved(pruned, model, IMAGES) < 1e-12 * before
    assert {k: v.shape for k, v in pruned.state_dict().items()}.keys() == model.state_dict().keys()


def test_layers_behind_a_norm_that_mixes_channels_and_transposed_readers() -> None:
    torch.manual_seed(0)
    model = group_norm()
    pruned, kept = without(model, IMAGES, "0", [1])
    before = moved(pruned, model, IMAGES)
    compensate(pruned, model, IMAGES, kept)
    assert moved(pruned, model, IMAGES) < 0.1 * before
    up = (
        nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.Flatten(),
        )
        .double()
        .eval()
    )
    pruned, kept = without(up, IMAGES, "0", [1])
    before = moved(pruned, up, IMAGES)
    refits = compensate(pruned, up, IMAGES, kept)
    assert refits == []  # the only layer with fewer inputs cannot be fitted
    group = groups_of(up, IMAGES)["0"]
    curve = measure_curve(up, group, torch.tensor([1, 0, 2, 3, 4, 5]), IMAGES, output=as_output("logits"))
    assert curve[5] == pytest.approx(before)


class Stream(nn.Module):
    """A stream that one branch has damaged, and a later branch that can repair it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6, bias=False)
        self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        return x + self.norm(self.d(self.c(x).relu()))


def test_the_error_in_the_stream_is_corrected(monkeypatch) -> None:
    torch.manual_seed(1)
    model, x = settled(Stream()), randn(200, 4)
    pruned, kept = without(model, x, "a", [0, 1, 2, 3])
    plain = copy.deepcopy(pruned)
    seen: dict[str, Tensor] = {}
    original = SplitMoments.update

    def spied(self: SplitMoments, inputs: Tensor, y: Tensor, *rest: Any) -> None:
        seen[next(n for n, m in pruned.named_modules() if m is self.layer)] = y
        original(self, inputs, y, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SplitMoments, "update", spied)
        compensate(pruned, model, [x], kept)
    with monkeypatch.context() as patch:
        patch.setattr("tpv.pruning.repair.compensation._correction", lambda target, now: 0)
        compensate(plain, model, [x], kept)
    assert moved(pruned, model, x) < 0.8 * moved(plain, model, x)

    def stream(m: nn.Module) -> Tensor:
        s = m.stem(x)
        return s + m.b(m.a(s).relu())

    with torch.no_grad():
        s = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        target = model.d(model.c(stream(model)).relu()) + (stream(model) - stream(pruned)) / s
        torch.testing.assert_close(seen["d"], target)
        torch.testing.assert_close(seen["b"], model.b(model.a(model.stem(x)).relu()))


def test_correction_leaves_closed_channels_alone() -> None:
    one = torch.ones(5, 3)
    target = _Observed(one, 4 * one, torch.tensor([2.0, -0.5, 1e-9]))
    assert _correction(target, _Observed(one, 2 * one)).tolist() == [[1, -4, 0]] * 5
    assert _correction(_Observed(one), _Observed(one, one)) == 0
    assert _correction(target, _Observed(one, torch.ones(2, 3))) == 0


class Written(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.relu = nn.Linear(3, 3), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.a(x)) + x


@pytest.mark.parametrize("inplace", [True, False])
def test_an_output_that_is_written_over_is_not_joined(inplace) -> None:
    with torch.no_grad(), joins(model := Written(inplace), {"a": lambda t: t}) as found:
        model(torch.randn(2, 3))
    assert found == {}


# where the bias goes


class Reads(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 4, 1, bias=how == "bias")
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "added":
            return self.norm(y) + y
        if self.how == "twice":
            return self.norm(self.norm(y))
        if self.how == "listed":
            return self.norm(y) + torch.stack([y, y]).sum(0)
        return self.norm(y.relu() if self.how == "relu" else y)


@pytest.mark.parametrize(
    ("how", "where"),
    [("alone", "mean"), ("bias", "bias"), ("added", None), ("twice", None), ("listed", None), ("relu", None)],
)
def test_where_the_bias_goes(how, where) -> None:
    model, x = settled(Reads(how)), randn(4, 3, 5, 5)
    put = _bias_setter(model, "conv", x, None)
    assert (put is None) == (where is None)
    if put is not None:
        before, b = model(x).detach(), randn(4, seed=3)
        with torch.no_grad():
            put(b)
        old = 0 if where == "mean" else copy.deepcopy(model.conv.bias) - b
        slope = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
        expected = before + ((b if where == "mean" else 0 * old) * slope).view(-1, 1, 1)
        if where == "mean":
            torch.testing.assert_close(model(x), expected)
        else:
            assert torch.equal(model.conv.bias, b)


def test_no_bias_appears_and_the_fit_knows() -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
        .double()
        .eval()
    )
    x = randn(60, 4)
    pruned, kept = without(model, x, "0", [0, 1])
    compensate(pruned, model, x, kept)
    assert pruned[2].bias is None
    with torch.no_grad():
        a, t, w0 = pruned[1](pruned[0](x)), model[2](model[1](model[0](x))), model[2].weight[:, 2:]
        best = min(
            (
                (w @ a.T - t.T).square().sum().item()
                for r in least_squares.RIDGES
                for w in [ridge_through_origin(a, t, w0, r)]
            ),
            default=0.0,
        )
        assert (pruned[2](a) - t).square().sum().item() >= best - 1e-9
        assert any(
            torch.allclose(pruned[2].weight, ridge_through_origin(a, t, w0, r)) for r in least_squares.RIDGES
        )


def ridge_through_origin(a: Tensor, t: Tensor, w0: Tensor, ridge: float) -> Tensor:
    xx = a.T @ a / len(a)
    damped = xx + ridge * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype)
    return w0 + torch.linalg.solve(damped, a.T @ (t - a @ w0.T) / len(a)).T


# what stays as it is


class Special(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.twice, self.frozen, self.tied, self.hooked, self.plain = (nn.Linear(8, 8) for _ in range(5))
        self.also = nn.Linear(8, 8)
        self.also.weight = self.tied.weight
        self.frozen.requires_grad_(False)
        self.hooked.register_forward_hook(lambda m, a, y: 2 * y)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.twice(self.twice(self.plain(x)).relu()).relu()
        x = self.hooked(self.frozen(x).relu()).relu()
        return self.head(self.also(self.tied(x).relu()))


def test_layers_left_alone() -> None:
    torch.manual_seed(0)
    model, x = Special().double().eval(), randn(80, 4)
    assert fittable(model).keys() == {"first", "twice", "plain", "head"}
    pruned, kept = without(model, x, "first", [0, 3])
    before = moved(pruned, model, x)
    done = [refit.layer for refit in compensate(pruned, model, x, kept)]
    assert done == ["plain", "head"]
    for name in ("twice", "frozen", "tied", "hooked", "also"):
        assert torch.equal(pruned.get_submodule(name).weight, model.get_submodule(name).weight)
        assert torch.equal(pruned.get_submodule(name).bias, model.get_submodule(name).bias)
    assert moved(pruned, model, x) < before


class Sometimes(nn.Module):
    """Skips a layer for short inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.extra, self.down = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).tanh()
        return self.down(h + self.extra(h) if x.shape[1] > 2 else h)


def test_batches_that_skip_a_layer_do_not_count_for_it() -> None:
    torch.manual_seed(0)
    model, long, short = Sometimes().double().eval(), randn(20, 3, 4), randn(20, 2, 4)
    groups = [channel_group(group) for group in all_groups(trace(model, long[:2]))]
    removed = {groups[0].name: [1, 2]}
    alone, both = (remove(model, long[:2], groups, removed) for _ in range(2))
    kept = kept_outputs(groups, removed)
    compensate(alone, model, [long], kept)
    assert [line.layer for line in compensate(both, model, [long, short], kept)] == ["extra", "down"]
    assert torch.equal(both.extra.weight, alone.extra.weight)
    assert not torch.equal(both.down.weight, alone.down.weight)


def test_padded_positions_do_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    torch.manual_seed(0)
    model, x = Tokens().double().eval(), randn(20, 7, 3)
    mask = (torch.arange(7) < torch.arange(20).remainder(6).add(2).unsqueeze(1)).long()
    refitted = []
    for padding in (0.0, 100.0):
        batch = {"x": torch.where(mask.unsqueeze(2) > 0, x, padding), "attention_mask": mask}
        groups = [channel_group(g) for g in all_groups(trace(model, batch))]
        pruned = remove(model, batch, groups, {"a": [0]})
        compensate(pruned, model, [batch], kept_outputs(groups, {"a": [0]}))
        curve = measure_curve(model, groups[0], torch.arange(6), [batch], output=as_output("logits"))
        refitted.append((pruned.b.weight.detach(), torch.tensor(list(curve.values()))))
    torch.testing.assert_close(*refitted)


def test_batches_do_not_matter() -> None:
    torch.manual_seed(0)
    model = residual()
    found = []
    for size in (40, 7):
        pruned, kept = without(model, IMAGES, "a", [0, 2])
        refits = compensate(pruned, model, list(IMAGES.split(size)), kept)
        found.append((list(pruned.parameters()), list(pruned.buffers()), [r.error for r in refits]))
    torch.testing.assert_close(*found)


def test_many_layers_are_watched_in_chunks(monkeypatch) -> None:
    torch.manual_seed(0)
    model = residual()
    found = []
    for chunk in (1, 2, 8):
        monkeypatch.setattr("tpv.pruning.repair.compensation._LAYERS_AT_ONCE", chunk)
        pruned, kept = without(model, IMAGES, "stem", [0, 2])
        events: list[tpv.ProgressEvent] = []
        compensate(pruned, model, IMAGES, kept, progress=events.append)
        assert [(e.stage, e.done, e.total) for e in events] == [("re-fitting", i, 4) for i in range(5)]
        found.append(list(pruned.state_dict().values()))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


# curves


def test_widths() -> None:
    assert widths_of(16, 4) == [1, 4, 8, 12, 16]
    assert widths_of(3, 10) == [1, 2, 3]
    assert widths_of(1, 10) == [1]


@pytest.mark.parametrize("refit", [True, False])
def test_a_curve_is_what_local_refits_give(refit, monkeypatch) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (1e-3,))
    torch.manual_seed(0)
    model = conv_bn()
    group = groups_of(model, IMAGES)["0"]
    order = torch.tensor([2, 4, 0, 1, 5, 3])
    with tpv.testing.assert_unchanged(model):
        curve = measure_curve(
            model, group, order, list(IMAGES.split(15)), refit=refit, output=as_output("logits")
        )
    assert sorted(curve) == [1, 2, 3, 4, 5, 6]
    assert curve[6] == 0
    for width in (2, 4, 5):
        pruned, kept = without(model, IMAGES, "0", order[: 6 - width].tolist())
        if refit:
            compensate(pruned, model, IMAGES, kept)
        assert curve[width] == pytest.approx(moved(pruned, model, IMAGES))
