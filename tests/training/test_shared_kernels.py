"""A spec keeps nothing, and calls share a kernel that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels import (
    FITS,
    STD,
    TEST,
    TRAIN,
    label_noise,
    mlp,
    value,
)
from torch import Tensor, nn

import tpv


def grams(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the two sides are the same, for every kernel that is written out."""
    written: list[bool] = []
    original = tpv.ntk.operator.gram

    def counted(left: Any, right: Any, names: Any) -> Tensor:
        written.append(left is right)
        return original(left, right, names)

    monkeypatch.setattr("tpv.ntk.operator.gram", counted)
    return written


def test_a_shared_kernel_gives_the_same_numbers_and_is_written_out_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlp()
    written = grams(monkeypatch)
    shared = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN))
    estimators = (tpv.Auto(), tpv.LinearizedMonteCarlo(3), tpv.HutchPlusPlus(3, 2))
    found = [value(model, x, shared, estimator=e) for x in (TEST, TRAIN) for e in estimators]
    found.append(tpv.linearity(model, TEST, shared).value)
    assert written == [True]
    fresh = [value(model, x, label_noise(), estimator=e) for x in (TEST, TRAIN) for e in estimators]
    fresh.append(tpv.linearity(model, TEST, label_noise()).value)
    assert found == fresh
    assert len(written) == 1 + len(fresh)
    assert (
        tpv.stability(model, TRAIN, TEST, shared).ratio
        == tpv.stability(model, TRAIN, TEST, label_noise()).ratio
    )


def test_stability_writes_out_each_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = grams(monkeypatch)
    tpv.stability(mlp(), TRAIN, TEST, label_noise())
    assert written == [True] * 3  # of all training inputs, and of each half


def test_prepared_noise_has_its_kernel() -> None:
    model = mlp()
    without = tpv.LabelNoise(STD, fit=FITS[1])
    assert without.needs_training_data
    for spec in (without.prepared(model, TRAIN), label_noise().prepared(model, TEST)):
        assert not spec.needs_training_data
        assert spec.kernel.shape == (30, 30)
        assert spec.prepared(model, TEST) is spec
        assert value(model, TEST, spec) == value(model, TEST, label_noise())


def changed_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight[0, 0] += 0.5


def changed_buffer(model: nn.Module) -> None:
    model.scale.mul_(2)


def other_parameters(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def frozen(model: nn.Module) -> None:
    model[0].requires_grad_(False)


def widened_weights(model: nn.Module) -> None:
    model.float().double()


def network_with_buffer() -> nn.Module:
    model = mlp()
    model.register_buffer("scale", torch.ones(()).double(), persistent=False)
    model.register_forward_hook(lambda module, args, z: z * module.scale)
    return model


@pytest.mark.parametrize(
    "change", [changed_weight, changed_buffer, other_parameters, frozen, widened_weights]
)
@pytest.mark.parametrize("estimator", [tpv.Exact(), tpv.LinearizedMonteCarlo(3)], ids=repr)
def test_a_changed_network_gets_its_own_numbers(
    change: Callable[[nn.Module], None], estimator: tpv.Estimator
) -> None:
    model, noise = network_with_buffer(), label_noise()
    value(model, TEST, noise, estimator=estimator)
    change(model)
    fresh = value(model, TEST, label_noise(), estimator=estimator)
    assert value(model, TEST, noise, estimator=estimator) == pytest.approx(fresh, rel=1e-12)


@pytest.mark.parametrize("change", [changed_weight, changed_buffer])
def test_a_kernel_of_other_weights_is_refused(change: Callable[[nn.Module], None]) -> None:
    model = network_with_buffer()
    noise = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN))
    value(model, TEST, noise)
    change(model)
    with pytest.raises(tpv.TPVError, match="the kernel is of another model, or this model's weights"):
        value(model, TEST, noise)
    with pytest.raises(tpv.TPVError, match="the kernel is of another model, or this model's weights"):
        tpv.linearity(model, TEST, noise)


@pytest.mark.parametrize(
    ("kernel", "options", "call", "sentence"),
    [
        ({}, {"params": "2.*"}, {}, "the kernel is of 4 parameters and 2 are selected"),
        ({"params": "2.*"}, {}, {}, "the kernel is of 2 parameters and 4 are selected"),
        ({}, {}, {"forward": lambda model, batch: model(2 * batch)}, "give tpv.NTK and the call the same forward="),
        ({"forward": lambda model, batch: model(2 * batch)}, {}, {}, "give tpv.NTK and the call the same forward="),
        ({}, {}, {"output": lambda z: z[:, 1:]}, "give tpv.NTK and the call the same forward="),
    ],
)  # fmt: skip
def test_a_kernel_of_something_else_is_refused(
    kernel: dict[str, Any], options: dict[str, Any], call: dict[str, Any], sentence: str
) -> None:
    model = mlp()
    noise = tpv.LabelNoise(STD, fit=FITS[1], kernel=tpv.NTK(model, TRAIN, **kernel), **options)
    with pytest.raises(tpv.TPVError, match=sentence):
        value(model, TEST, noise, **call)


def test_another_network_or_forward_with_the_same_weights_gets_its_own_numbers() -> None:
    noise, tanh = label_noise(), mlp()
    other = nn.Sequential(tanh[0], nn.Tanh(), tanh[2]).eval()
    other.register_forward_hook(lambda module, args, z: torch.sin(z))
    doubled = lambda model, batch: model(2 * batch)  # noqa: E731
    for model, forward in ((tanh, None), (other, None), (tanh, doubled), (tanh, None)):
        assert value(model, TEST, noise, forward=forward) == value(
            model, TEST, label_noise(), forward=forward
        )
    assert (
        value(other, TEST, label_noise())
        != value(tanh, TEST, label_noise())
        != value(tanh, TEST, label_noise(), forward=doubled)
    )


def test_a_network_with_another_setting_gets_its_own_numbers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = mlp(), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.inner(x)

    model, noise = Scaled(), label_noise()
    value(model, TEST, noise)
    model.scale = 2.0
    assert value(model, TEST, noise) == value(model, TEST, label_noise())
    model.inner[1] = nn.Sigmoid()
    assert value(model, TEST, noise) == value(model, TEST, label_noise())
