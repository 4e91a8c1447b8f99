"""The formulas of normalization layers against autograd, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import randn, seeded
from torch import Tensor, nn

import tpv
from tpv.jacobian.formulas import norm
from tpv.jacobian.formulas.registry import layer_call
from tpv.testing import dense_tpv

SPACE = {1: (5,), 2: (3, 4), 3: (2, 3, 2)}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"batch {d}d": (lambda d=d: getattr(nn, f"BatchNorm{d}d")(6), (6, *SPACE[d])) for d in SPACE},
    "batch, no positions": (lambda: nn.BatchNorm1d(6), (6,)),
    "batch, one position": (lambda: nn.BatchNorm2d(6), (6, 1, 1)),
    **{
        f"instance {d}d": (lambda d=d: getattr(nn, f"InstanceNorm{d}d")(6, affine=True), (6, *SPACE[d]))
        for d in SPACE
    },
    **{
        f"instance {d}d, running statistics": (
            lambda d=d: getattr(nn, f"InstanceNorm{d}d")(6, affine=True, track_running_stats=True),
            (6, *SPACE[d]),
        )
        for d in SPACE
    },
    **{f"group {d}d": (lambda: nn.GroupNorm(3, 6), (6, *SPACE[d])) for d in SPACE},
    "group, no positions": (lambda: nn.GroupNorm(3, 6), (6,)),
    "layer": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer, two axes": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "root mean square": (lambda: nn.RMSNorm(4), (3, 4)),
}


def settled(module: nn.Module) -> nn.Module:
    """Evaluation mode, in float64, far from the defaults: means of many standard deviations."""
    module = module.double().eval()
    with torch.no_grad():
        for i, tensor in enumerate([*module.parameters(), *module.buffers()]):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=seeded(i)).double() * 5 + 0.5)
    return module


def one_by_one(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """(n, *shape) of each parameter, by autograd in float64; examples twice, for CPU kernels that fail with one."""
    parameters = dict(module.named_parameters())
    rows = []
    for xi, gi in zip(x.double(), g.double(), strict=True):
        y = module(torch.stack([xi, xi]))
        rows.append(torch.autograd.grad(y, list(parameters.values()), torch.stack([gi, gi * 0])))
    return {
        name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)
    }


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_single_examples(
    name: str, layout: Callable[[Tensor], Tensor], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(norm, "_fused_sums", norm._plain_sums)
    build, shape = LAYERS[name]
    module, x, g = settled(build()), layout(randn(4, *shape) + 2), layout(randn(4, *shape, seed=1))
    call = layer_call(module, x, 4, 1)
    assert call is not None
    names = [name for name, _ in module.named_parameters()]
    for found in (call.gradients(g, names), {n: call.gradients(g, [n])[n] for n in names}):
        for key, expected in one_by_one(module, x, g).items():
            torch.testing.assert_close(found[key], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_is_summed_in_float32(name: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr(norm, "_fused_sums", norm._plain_sums)
    build, shape = LAYERS[name]
    module = settled(build())
    x, g = (randn(2, *shape) + 2).bfloat16(), randn(2, *shape, seed=1).bfloat16()
    half = copy.deepcopy(module).bfloat16()
    exact = copy.deepcopy(half).double()
    call = layer_call(half, x, 2, 1)
    assert call is not None
    for key, expected in one_by_one(exact, x, g).items():
        found = call.gradients(g, [key])[key]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_mean_of_many_standard_deviations_loses_no_digits() -> None:
    module = nn.BatchNorm1d(6).eval()
    module.running_mean.fill_(2048.0)
    x, g = 2048 + randn(4, 6, 5).float(), randn(4, 6, 5, seed=1).float()
    expected = one_by_one(copy.deepcopy(module).double(), x, g)["weight"]
    for sums in (norm._fused_sums, norm._plain_sums):
        found = sums(g, x, module.running_mean)[0].double() * (1 + module.eps) ** -0.5
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "alone"),
    # torch has no RMSNorm with a bias, and fails to differentiate a GroupNorm that has nothing else
    [
        (n, p)
        for n in LAYERS
        for p in ("weight", "bias")
        if p == "weight" or not n.startswith(("group", "root"))
    ],
)
def test_either_parameter_may_be_alone(name: str, alone: str) -> None:
    build, shape = LAYERS[name]
    module = settled(build())
    if hasattr(module, "bias"):
        module.register_parameter("bias" if alone == "weight" else "weight", None)
    model, x = nn.Sequential(module, nn.Tanh(), nn.Flatten()), randn(3, *shape)
    result = tpv.estimate(model, [x], tpv.Isotropic(0.3), estimator=tpv.Exact())
    assert result.value == pytest.approx(dense_tpv(model, x, tpv.Isotropic(0.3))["total"], rel=1e-10)
    assert "slow_routes" not in result.metadata


@pytest.mark.parametrize("d", SPACE)
def test_an_input_without_a_batch_axis_is_not_counted_as_examples(d: int) -> None:
    module = getattr(nn, f"InstanceNorm{d}d")(6, affine=True)
    assert layer_call(module, torch.ones(6, *SPACE[d]), 6, 1) is None


@pytest.mark.parametrize(
    "norm_of", [lambda: nn.BatchNorm2d(6), lambda: nn.BatchNorm2d(6, track_running_stats=False).eval()]
)
def test_statistics_of_a_batch_have_no_formula(norm_of: Callable[[], nn.Module]) -> None:
    assert layer_call(norm_of(), torch.ones(2, 6, 3, 4), 2, 1) is None


@pytest.mark.cuda
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_same_on_cuda(name: str) -> None:
    build, shape = LAYERS[name]
    module, x, g = settled(build()), randn(4, *shape) + 2, randn(4, *shape, seed=1)
    call = layer_call(copy.deepcopy(module).cuda(), x.cuda(), 4, 1)
    assert call is not None
    for key, expected in one_by_one(module, x, g).items():
        torch.testing.assert_close(
            call.gradients(g.cuda(), [key])[key].cpu(), expected, rtol=1e-10, atol=1e-10
        )
