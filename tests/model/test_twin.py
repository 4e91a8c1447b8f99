"""The twin of a model: same outputs and gradients, by its own parameters, and the user's model untouched."""

from __future__ import annotations

import collections
import enum
import functools
import gc
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import randn
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import tpv
from tpv.model.batches import call_model
from tpv.model.twin import make_twin, twin_of
from tpv.model.watch import watch_of
from tpv.testing import assert_unchanged


class Net(nn.Module):
    """Two layers, and whatever a case adds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def net(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return kind().double().eval()


X = randn(6, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Everything that leads to a weight leads to the twin's
# ---------------------------------------------------------------------------------------------------------------------


def patched_closure() -> nn.Module:
    model = net()
    original = model.forward
    model.forward = lambda x: original(x) + model.a.weight.sum()
    return model


def patched_method() -> nn.Module:
    model = net()
    model.forward = types.MethodType(lambda self, x: self.b(torch.sin(self.a(x))), model)
    return model


def default_argument() -> nn.Module:
    model = net()
    model.forward = lambda x, layer=model.a, *, last=model.b: last(layer(x))
    return model


def partial() -> nn.Module:
    model = net()
    model.forward = functools.partial(
        lambda layers, x, scale: scale * layers[1](layers[0](x)), (model.a, model.b), scale=2
    )
    return model


def recursive_closure() -> nn.Module:
    model = net()

    def deeper(x: Tensor, n: int) -> Tensor:
        return model.b(x) if n == 0 else deeper(torch.tanh(x + model.a.bias), n - 1)

    model.forward = lambda x: deeper(model.a(x), 3)
    return model


def weak_reference() -> nn.Module:
    class Child(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.parent().a.weight.sum() + self.mapping["b"].bias.sum()

    model = net()
    child = Child()
    child.parent, child.mapping = weakref.ref(model), weakref.WeakValueDictionary(b=model.b)
    return nn.Sequential(model, child)


def weak_proxy() -> nn.Module:
    class Child(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.layer.weight.sum()

    model, child = net(), Child()
    object.__setattr__(child, "layer", weakref.proxy(model.a))
    return nn.Sequential(model, child)


def unregistered_layers() -> nn.Module:
    class Listed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.by_name["b"](self.layers[0](x)) + self.table[0].weight.sum()

    model = net(Listed)
    object.__setattr__(model, "layers", [model.a])
    model.by_name, model.table = {"b": model.b}, collections.deque([model.b])
    return model


def keyed_by_module() -> nn.Module:
    class Keyed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale[self.a]) * self.by_id[id(self.b)]

    model = net(Keyed)
    model.scale, model.by_id = {model.a: 2.0}, {id(model.b): 3.0}
    return model


def objects() -> nn.Module:
    class Runner:
        __slots__ = ("bound", "layer")

        def __init__(self, layer: nn.Module) -> None:
            self.layer, self.bound = layer, layer.forward

        def run(self, x: Tensor) -> Tensor:
            return self.bound(x) + self.layer.bias

    class WithObject(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.space.runner.run(x)) + self.pair[1].sum()

    model = net(WithObject)
    model.space, model.pair = types.SimpleNamespace(runner=Runner(model.a)), (0, model.a.weight)
    return model


def hooks() -> nn.Module:
    model = net()
    model.a.register_forward_hook(lambda module, args, output: output * model.b.weight.sum())
    model.b.register_forward_pre_hook(
        functools.partial(lambda owner, module, args: (args[0] + owner.a.bias,), model)
    )
    return model


def tied() -> nn.Module:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    return Tied().double().eval()


def views() -> nn.Module:
    class Viewed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.linear(x, self.turned.t()) * self.row.sum())

    model = net(Viewed)
    model.turned, model.row = model.a.weight.t(), model.b.weight[1]
    return model


def detached_view() -> nn.Module:
    model = views()
    model.turned, model.row = model.turned.detach(), model.row.detach()
    return model


def parametrized() -> nn.Module:
    model = net()
    parametrizations.weight_norm(model.a)
    parametrizations.orthogonal(model.b)
    return model


def old_weight_norm() -> nn.Module:
    model = net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.a)
    return model


def old_spectral_norm() -> nn.Module:
    model = net()
    nn.utils.spectral_norm(model.a)
    return model.eval()


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model.a, "weight", amount=0.5)
    prune.random_unstructured(model.b, "bias", amount=1)
    return model


def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x[:, None])[0][:, 0])

    torch.manual_seed(0)
    return Recurrent().double().eval()


def compiled() -> nn.Module:
    torch.compiler.reset()
    return torch.compile(net(), backend="eager")


def data_parallel() -> nn.Module:
    return nn.DataParallel(net())


def compiled_method() -> nn.Module:
    torch.compiler.reset()
    model = net()
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def traced() -> nn.Module:
    return torch.jit.trace(net(), X)


def enumeration() -> nn.Module:
    class Mode(enum.Enum):
        TANH, SIN = 1, 2

    class Switched(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sin(self.a(x)) if self.mode is Mode.SIN else self.a(x))

    model = net(Switched)
    model.mode = Mode.SIN
    return model


MARKER = object()


def marker() -> nn.Module:
    class Marked(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sin(self.a(x)) if self.marker is MARKER else self.a(x))

    model = net(Marked)
    model.marker = MARKER
    return model


GLOBAL = net()


def global_helper(x: Tensor) -> Tensor:
    return GLOBAL.b(torch.sin(GLOBAL.a(x)))


def global_name() -> nn.Module:
    GLOBAL.forward = lambda x: global_helper(x)
    return GLOBAL


def destructor() -> nn.Module:
    class Closing(Net):
        closed = 0

        def __del__(self) -> None:
            type(self).closed += 1

    return net(Closing)


def unpicklable() -> nn.Module:
    model = net()
    model.lock, model.file = threading.Lock(), sys.stdout
    model.optimizer, model.steps = torch.optim.SGD(model.parameters(), 0.1), (i for i in range(3))
    return model


CASES = [
    patched_closure, patched_method, default_argument, partial, recursive_closure, weak_reference, weak_proxy,
    unregistered_layers, keyed_by_module, objects, hooks, tied, parametrized, old_weight_norm, old_spectral_norm,
    pruned, recurrent, compiled, data_parallel, compiled_method, traced, enumeration, marker, global_name, destructor,
    unpicklable,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_everything_that_leads_to_a_weight_leads_to_the_twins(case: Callable[[], nn.Module]) -> None:
    model = case()
    names, values = zip(*model.named_parameters(), strict=True)
    trained = torch.compiler.set_stance("force_eager")
    with assert_unchanged(model), trained, twin_of(model) as (twin, _):
        with watch_of(twin).forward() as check_graph:
            outputs = twin(X)
        check_graph(outputs)
        gradients = torch.autograd.grad(outputs.square().sum(), list(twin.parameters()), allow_unused=True)
    expected = model(X)
    reference = torch.autograd.grad(expected.square().sum(), values, allow_unused=True)
    assert torch.equal(outputs, expected)
    assert any(g is not None and g.any() for g in gradients)
    assert names == tuple(name for name, _ in twin.named_parameters())
    for p, q, g, h in zip(twin.parameters(), values, gradients, reference, strict=True):
        assert p is not q
        assert p.data_ptr() == q.data_ptr()
        assert (g is None) == (h is None)
        assert g is None or torch.equal(g, h)


def test_a_destructor_runs_once_for_the_user() -> None:
    model = destructor()
    kind = type(model)
    with twin_of(model) as (twin, _):
        assert isinstance(twin, kind)
    del twin
    gc.collect()
    assert kind.closed == 0


def test_shared_and_own() -> None:
    class Handle:
        def __init__(self) -> None:
            self.number = 1

        def __del__(self) -> None:
            pass

    model = unpicklable()
    model.handle, model.number = Handle(), torch.ones(())
    twin = make_twin(model).model
    assert twin.handle is model.handle
    assert twin.number.data_ptr() != model.number.data_ptr()
    assert twin.lock is model.lock
    assert twin.file is model.file
    assert twin.optimizer is model.optimizer


# ---------------------------------------------------------------------------------------------------------------------
# State is the twin's own
# ---------------------------------------------------------------------------------------------------------------------


class Stateful(Net):
    """Every kind of state that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("large", torch.zeros(2**18))
        self.register_buffer("part", self.large[4:8])
        self.step = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.leaf = torch.zeros((), requires_grad=True)
        self.array, self.bytes, self.pair = np.zeros(2), bytearray(1), (torch.zeros(()),)
        self.object, self.history, self.table = types.SimpleNamespace(n=0), collections.deque(maxlen=3), {}
        self.counts: Any = collections.defaultdict(int)
        self.random, self.generator, self.numpy = (
            random.Random(0),
            torch.Generator(),
            np.random.default_rng(0),
        )
        count = 0

        def counted() -> int:
            nonlocal count
            count += 1
            return count

        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.large[5] += 1
        self.step += 1
        self.leaf.data.add_(1)
        self.array += 1
        self.bytes[0] += 1
        self.pair[0].add_(1)
        self.object.n += 1
        self.history.append(1)
        self.table["x"] = x
        self.counts["x"] += 1
        self.random.random()
        torch.rand(1, generator=self.generator)
        self.numpy.random()
        self.counted()
        self.new = nn.Linear(2, 2)
        self.register_buffer("other", torch.zeros(1))
        self.b.weight = nn.Parameter(self.b.weight.detach().clone())
        self.a.extra = 1
        return super().forward(x)


def state(model: Any) -> tuple[Any, ...]:
    return (
        model.calls.item(), model.large.sum().item(), model.step.item(), model.leaf.item(), model.array.tolist(),
        bytes(model.bytes), model.pair[0].item(), model.object.n, list(model.history), dict(model.table), dict(model.counts),
        model.random.getstate(), model.generator.get_state().tolist(), model.numpy.bit_generator.state,
        model.counted.__closure__[0].cell_contents, list(model._modules), list(model._buffers), hasattr(model.a, "extra"),
        model.part.tolist(),
    )  # fmt: skip


def test_state_stays_as_it_was() -> None:
    model = net(Stateful)
    model.part = model.large[4:8]  # .double() has made them separate
    before, large = state(model), model.large.data_ptr()
    with assert_unchanged(model), twin_of(model) as (twin, _):
        assert twin.large.data_ptr() == large
        with watch_of(twin).forward():
            twin(X)
        assert twin.large.data_ptr() != large
        assert twin.part.tolist() == [0, 1, 0, 0]
        assert state(twin)[:3] == (1, 1, 1)
        twin(X)
        assert twin.part.tolist() == [0, 2, 0, 0]
    assert state(model) == before


def test_a_large_buffer_is_copied_once_when_a_view_of_it_is_written_to() -> None:
    class Memory(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.zeros(3, 2**18))

        def forward(self, x: Tensor) -> Tensor:
            row = self.bank[1]
            row.add_(1)
            return super().forward(x) * row[0] * self.bank[1, 0]

    model = net(Memory)
    with assert_unchanged(model), twin_of(model) as (twin, _):
        with watch_of(twin).forward():
            outputs = twin(X)
        assert torch.equal(outputs, Net.forward(model, X))


def test_large_arrays_are_read_only() -> None:
    model = net()
    model.table = np.zeros(2**18)
    with twin_of(model) as (twin, _):
        assert np.shares_memory(twin.table, model.table)
        with pytest.raises(ValueError, match="read-only"):
            twin.table[0] = 1
    model.table[0] = 1


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


class Clipped(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class Computed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.double()
        self.squared = self.a.weight.square()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.squared))


class ClassLevel(Net):
    layers: dict[str, nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.layers["a"](x))


class Detached(ClassLevel):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.layers["a"](x)
        return self.b(h)


def class_level(kind: type[ClassLevel] = ClassLevel) -> nn.Module:
    model = net(kind)
    ClassLevel.layers = {"a": model.a}
    return model


def resized() -> nn.Module:
    model = net()
    model.forward = lambda x: (model.a.weight.data.resize_(1), X)[1]
    return model


def watched(model: nn.Module) -> None:
    with twin_of(model) as (twin, _):
        with watch_of(twin).forward() as check_graph:
            outputs = twin(X)
        check_graph(outputs)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: net(Clipped), "the model's forward pass writes into 'a.weight'"),
        (resized, "the model's forward pass writes into 'a.weight'"),
        (lambda: net(Computed), "use 'a.weight' through something that a perturbation would not reach"),
        (
            lambda: class_level(Detached),
            "use 'a.weight' through something that a perturbation would not reach",
        ),
        (class_level, "use 'a.weight' through something that a perturbation would not reach"),
        (views, "use 'a.weight' through something that a perturbation would not reach"),
        (detached_view, "use 'a.weight' through something that a perturbation would not reach"),
        (lambda: nn.LazyLinear(3), "lazy layers"),
    ],
)
def test_refused_with_a_sentence(build: Callable[[], nn.Module], sentence: str) -> None:
    model = build()
    before = None if isinstance(model, nn.LazyLinear) else [p.detach().clone() for p in model.parameters()]
    with pytest.raises(tpv.TPVError, match=sentence):
        watched(model)
    assert before is None or all(map(torch.equal, before, model.parameters()))


def test_verbs_refuse_in_words() -> None:
    with pytest.raises(tpv.TPVError, match=r"writes into 'a\.weight'"):
        tpv.estimate(net(Clipped), X, tpv.Isotropic(0.1))


class InPlace(tpv.Perturbation):
    def sample(self, at: tpv.Weights, generator: torch.Generator) -> Any:
        return {name: w.mul_(0.1) for name, w in at.items()}


class InPlaceVariance(tpv.DiagonalPerturbation):
    def variance(self, at: tpv.Weights) -> Any:
        return {name: torch.mul(w, w, out=w) for name, w in at.items()}


@pytest.mark.parametrize(
    ("perturbation", "sentence"),
    [
        (InPlace(), r"sample writes into 'a\.weight'"),
        (InPlaceVariance(), r"variance writes into 'a\.weight'"),
        (tpv.Isotropic(0.1, params=lambda name, w: bool(w.zero_().sum() + 1)), r"params= writes into 'a\.weight'"),
        (tpv.Isotropic(0.1, params=lambda name, w: bool(torch._foreach_add_([w], 1) or True)), "params= writes"),
    ],
)  # fmt: skip
def test_callbacks_that_write_are_refused_before_they_do(perturbation: Any, sentence: str) -> None:
    model = net()
    with assert_unchanged(model), pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(model, X, perturbation)


# ---------------------------------------------------------------------------------------------------------------------
# The user's functions
# ---------------------------------------------------------------------------------------------------------------------


def test_forward_uses_the_twin_and_fills_the_users_lists() -> None:
    model, seen = net(), []
    forwards = [
        lambda m, batch: (seen.append(1), model(batch))[1],
        functools.partial(lambda owner, m, batch: (seen.append(1), owner.b(owner.a(batch)))[1], model),
        lambda m, batch, call=model.__call__: (seen.append(1), call(batch))[1],
    ]
    for forward in forwards:
        seen.clear()
        with twin_of(model, forward) as (twin, remapped):
            outputs = remapped(None, X)
            (gradient,) = torch.autograd.grad(outputs.sum(), twin.a.weight)
        assert gradient.abs().sum() > 0
        assert seen == [1]


def test_forward_with_a_global_model() -> None:
    with twin_of(GLOBAL, lambda m, batch: GLOBAL.b(GLOBAL.a(batch))) as (twin, remapped):
        assert torch.autograd.grad(remapped(None, X).sum(), twin.a.weight)[0].abs().sum() > 0


def test_forward_that_does_not_refer_to_the_model_is_the_users_own() -> None:
    forward = lambda m, batch: m(batch)  # noqa: E731
    with twin_of(net(), forward) as (_, remapped):
        assert remapped is forward
    with twin_of(net(), call_model) as (_, remapped):
        assert remapped is call_model


def test_the_number_is_that_of_a_forward_without_the_closure() -> None:
    model = net()
    noise = tpv.Isotropic(0.1)
    expected = tpv.estimate(model, X, noise).value
    assert tpv.estimate(model, X, noise, forward=lambda m, batch: model(batch)).value == expected


# ---------------------------------------------------------------------------------------------------------------------
# Gradients, inference tensors, life
# ---------------------------------------------------------------------------------------------------------------------


def test_frozen_parameters_require_gradients_when_asked() -> None:
    model = net()
    model.a.requires_grad_(False)
    assert not make_twin(model).model.a.weight.requires_grad
    assert make_twin(model, frozen_gradients=True).model.a.weight.requires_grad
    assert not model.a.weight.requires_grad


def test_a_model_made_in_inference_mode_and_a_call_inside_of_it() -> None:
    with torch.inference_mode():
        loaded = net()
    noise = tpv.Isotropic(0.1)
    expected = tpv.estimate(net(), X, noise).value
    assert tpv.estimate(loaded, X, noise).value == expected
    with torch.inference_mode():
        assert tpv.estimate(net(), X, noise).value == expected


@pytest.mark.parametrize(
    "case", [net, patched_closure, hooks, weak_reference, views, parametrized, recurrent]
)
def test_a_twin_is_collected_after_the_call(case: Callable[[], nn.Module]) -> None:
    model = case()
    with twin_of(model, lambda m, batch: model(batch)) as (twin, remapped):
        references = [weakref.ref(module) for module in twin.modules()]
        remapped(twin, X)
    del twin, remapped
    gc.collect()
    assert not any(reference() for reference in references)


def test_calls_do_not_grow() -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    for _ in range(2):
        tpv.estimate(net(), X, tpv.Isotropic(0.1), estimator=tpv.Hutchinson(1))
        before = tensors()
    tpv.estimate(net(), X, tpv.Isotropic(0.1), estimator=tpv.Hutchinson(1))
    assert tensors() == before


def test_the_twin_of_a_twin() -> None:
    model = net(Stateful)
    with (
        assert_unchanged(model),
        twin_of(model) as (first, _),
        assert_unchanged(first),
        twin_of(first) as (second, _),
    ):
        with watch_of(second).forward():
            second(X)
        assert first.calls.item() == 0
        assert second.a.weight.data_ptr() == model.a.weight.data_ptr()


def test_a_layer_added_by_a_forward_pass_is_not_the_users() -> None:
    class Growing(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "late"):
                self.late = nn.Linear(3, 3).double()
            return self.late(super().forward(x))

    model = net(Growing)
    with assert_unchanged(model):
        result = tpv.estimate(model, X, tpv.Isotropic(0.1))
    assert list(result.layers) == ["a", "b"]
    assert not hasattr(model, "late")


def test_peft_adapters() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = (
        peft.get_peft_model(net(), peft.LoraConfig(target_modules=["a"], init_lora_weights=False))
        .double()
        .eval()
    )
    with assert_unchanged(model), twin_of(model) as (twin, _):
        assert torch.equal(twin(X), model(X))
        assert sum(p.requires_grad for p in twin.parameters()) == 2
