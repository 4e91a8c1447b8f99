"""A padding shortcut becomes the convolution that it is, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import cifar10_resnet20 as target
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from cases import randn, settled
from torch import Tensor, nn

import tpv
from tpv.model.shortcuts import replace_padding_shortcuts
from tpv.testing import assert_unchanged


class Lambda(nn.Module):
    """The ``LambdaLayer`` of CIFAR ResNets."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def after(
    shortcut: Callable[[Tensor], Tensor] | nn.Module, dims: int = 2, first: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    module = shortcut if isinstance(shortcut, nn.Module) else Lambda(shortcut)
    return nn.Sequential(conv(3, 4, 3, padding=1), first(), module, nn.ReLU())


def padded(x: Tensor, before: int, behind: int) -> Tensor:
    return F.pad(x, (0, 0) * (x.ndim - 2) + (before, behind))


MAPS = {
    "option A": (lambda x: padded(x[:, :, ::2, ::2], 2, 2), 2, (2, 2), 8),
    "stride 1": (lambda x: padded(x, 0, 3), 2, (1, 1), 7),
    "zeros joined on": (
        lambda x: torch.cat([x[:, :, ::3, ::3], torch.zeros_like(x[:, :, ::3, ::3])], 1),
        2,
        (3, 3),
        8,
    ),
    "fewer channels": (lambda x: x[:, [2, 0], ::2], 2, (2, 1), 2),
    "channels twice": (lambda x: torch.cat([x, x], 1), 2, (1, 1), 8),
    "one axis": (lambda x: padded(x[:, :, ::5], 1, 0), 1, (5,), 5),
    "three axes": (lambda x: padded(x[:, :, ::2, ::2, ::2], 2, 2), 3, (2, 2, 2), 8),
}
OTHERS = {
    "average pool": lambda x: padded(F.avg_pool2d(x, 2), 2, 2),
    "offset": lambda x: padded(x[:, :, 1::2, 1::2], 2, 2),
    "rectified": lambda x: padded(x[:, :, ::2, ::2].relu(), 2, 2),
    "scaled": lambda x: 2 * padded(x, 2, 2),
    "padded with ones": lambda x: F.pad(x, (0, 0, 0, 0, 2, 2), value=1.0),
    "mixed channels": lambda x: torch.cat([x, x[:, :1] + x[:, 1:2]], 1),
    "pixels into channels": lambda x: F.pixel_unshuffle(x, 2),
    "pooled by maximum": lambda x: padded(F.max_pool2d(x, 3, 2, 1), 2, 2),
    "same channels": lambda x: x[:, :, ::2, ::2],
    "random": lambda x: padded(F.dropout(x, 0.5), 2, 2),
    "for a single example only": lambda x: padded(x, 2, 2) * (1.0 if len(x) == 1 else 1.001),
    "for these examples only": lambda x: padded(x, 2, 2) * (1.001 if len(x) == 2 else 1.0),
    "no tensor of another size": lambda x: padded(x.view(3, 4, 12, 12), 2, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_a_map_becomes_its_convolution(name: str, dtype: torch.dtype) -> None:
    function, dims, stride, channels = MAPS[name]
    torch.manual_seed(0)
    model = after(function, dims).to(dtype)
    x, y = (randn(2, 3, *[size] * dims).to(dtype) for size in (11, 6))
    before = [model(t) for t in (x, y)]
    kept = {name: (p, p.clone()) for name, p in model.named_parameters()}
    assert replace_padding_shortcuts(model, (x, "label")) == ["2"]
    conv = model[2]
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1])
    assert (conv.in_channels, conv.out_channels, conv.stride, conv.bias) == (4, channels, stride, None)
    assert conv.weight.dtype is dtype
    assert not conv.weight.requires_grad
    assert ((conv.weight == 0) | (conv.weight == 1)).all()
    assert all(torch.equal(model(t), expected) for t, expected in zip((x, y), before, strict=True))
    assert all(model.get_parameter(n) is p and torch.equal(p, value) for n, (p, value) in kept.items())
    assert replace_padding_shortcuts(model, x) == []
    assert model[2] is conv


@pytest.mark.parametrize("first", [nn.Tanh, nn.ReLU], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OTHERS)
def test_whatever_else_a_module_does_it_stays(name: str, first: type[nn.Module]) -> None:
    model = after(OTHERS[name], first=first)
    modules = list(model.modules())
    with assert_unchanged(model):
        assert replace_padding_shortcuts(model, randn(3, 3, 12, 12).float()) == []
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_flags_statistics_and_random_state_stay(training: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), Lambda(MAPS["option A"][0])
    ).train(training)
    model[0].train()
    others, state = model[:3], torch.get_rng_state()
    with assert_unchanged(others):
        assert replace_padding_shortcuts(model, randn(2, 3, 8, 8).float()) == ["3"]
    assert torch.equal(torch.get_rng_state(), state)
    assert model[3].training is training


def test_a_module_is_replaced_wherever_it_stands_and_a_nest_of_modules_once() -> None:
    shared = Lambda(MAPS["option A"][0])
    nest = nn.Sequential(nn.Identity(), Lambda(lambda x: padded(x, 0, 1)))
    block = nn.Sequential(nest)
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Conv2d(3, 4, 1), shared), "b": shared, "c": block, "d": block}
    )

    def forward(model: nn.ModuleDict, x: Tensor) -> Tensor:
        return model["d"](model["c"](model["a"](x)) [:, :8]).flatten(1).sum(1) + model["b"](x.expand(-1, 3, -1, -1).repeat(1, 2, 1, 1)[:, :4]).sum()  # fmt: skip

    x = randn(2, 3, 8, 8).float()
    expected = forward(model, x)
    assert replace_padding_shortcuts(model, x, forward=forward) == ["a.1", "b", "c", "d"]
    assert model["a"][1] is model["b"]
    assert model["c"] is model["d"]
    assert isinstance(model["c"], nn.Conv2d)
    assert torch.equal(forward(model, x), expected)


def test_a_block_under_two_names_is_changed_once() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), Lambda(lambda x: x[:, 1:]))
    model = nn.Sequential(block, nn.Tanh(), block)
    x = randn(2, 3, 8, 8).float()
    expected = model(x)
    assert replace_padding_shortcuts(model, x) == ["0.1", "2.1"]
    assert model[0] is model[2]
    assert torch.equal(model(x), expected)


def test_a_module_with_hooks_or_of_two_widths_stays() -> None:
    hooked = after(MAPS["option A"][0])
    hooked[2].register_forward_hook(lambda module, args, output: None)
    assert replace_padding_shortcuts(hooked, randn(2, 3, 8, 8).float()) == []
    twice = Lambda(MAPS["stride 1"][0])
    assert (
        replace_padding_shortcuts(
            nn.Sequential(nn.Conv2d(3, 3, 1), twice, nn.ReLU(), twice), randn(2, 3, 8, 8).float()
        )
        == []
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_changes_nothing(error: type[BaseException]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("injected")

    model = nn.Sequential(after(MAPS["option A"][0]), Lambda(fail))
    with assert_unchanged(model), pytest.raises(error, match="injected"):
        replace_padding_shortcuts(model, randn(2, 3, 8, 8).float())
    assert isinstance(model[0][2], Lambda)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(tpv.TPVError, match=r"must be a torch\.nn\.Module, got int"):
        replace_padding_shortcuts(3, torch.ones(1))
    with pytest.raises(tpv.TPVError, match=r"wrap it"):
        replace_padding_shortcuts(Lambda(MAPS["option A"][0]), randn(2, 3, 8, 8).float())


def test_torch_pruning_sees_the_stages_of_a_resnet() -> None:
    model, x = settled(target.CifarResNet(20)).float(), torch.randn(2, 3, 32, 32)
    expected = model(x)
    keys = set(model.state_dict())
    assert replace_padding_shortcuts(model, x) == ["layer2.0.shortcut", "layer3.0.shortcut"]
    assert torch.equal(model(x), expected)
    assert set(model.state_dict()) - keys == {"layer2.0.shortcut.weight", "layer3.0.shortcut.weight"}
    stages = {}
    graph = torch_pruning.DependencyGraph().build_dependency(model, x)
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        out = {
            d.target.name.split(" ")[0]
            for d, _ in group
            if d.handler == torch_pruning.prune_conv_out_channels
        }
        stages[frozenset(out)] = len(group[0].idxs)
    whole = {names: width for names, width in stages.items() if len(names) > 1}
    assert whole == {
        frozenset(["conv1", *[f"layer1.{i}.conv2" for i in range(3)]]): 16,
        frozenset(["layer2.0.shortcut", *[f"layer2.{i}.conv2" for i in range(3)]]): 32,
        frozenset(["layer3.0.shortcut", *[f"layer3.{i}.conv2" for i in range(3)]]): 64,
    }
    alone = {f"layer{s}.{i}.conv1": 16 * 2 ** (s - 1) for s in (1, 2, 3) for i in range(3)}
    assert {next(iter(names)): width for names, width in stages.items() if len(names) == 1} == alone
