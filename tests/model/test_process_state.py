"""Whatever is process-wide is restored, and verbs of several threads take turns."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame as frame
import torch._functorch.eager_transforms as transforms
import torch.nn.functional as F
from cases import randn
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tpv
from tpv.model.attention import MathAttention
from tpv.model.process_state import process_state

LEVELS: Any = torch._C._functorch


def everything() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled(), torch.get_default_dtype(),
        LEVELS.get_dynamic_layer_stack_depth(), forward_ad._current_level, transforms.JVP_NESTING,
        LEVELS.get_inplace_requires_grad_allowed(), torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(), torch._C._autograd._top_saved_tensors_default_hooks(True), frame._stance,
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
    )  # fmt: skip


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


class PassingFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


def entered(context: Any) -> Any:
    context.__enter__()
    return context


def open_levels() -> None:
    LEVELS._vmap_increment_nesting(3, "error")
    LEVELS._grad_increment_nesting()
    LEVELS._jvp_increment_nesting()
    transforms.JVP_NESTING += 1


def stance() -> None:
    torch.compiler.set_stance("force_eager")


CHANGES = [
    lambda: torch.set_grad_enabled(False),
    lambda: torch.set_default_dtype(torch.float64),
    lambda: torch._C._set_fwd_grad_enabled(False),
    lambda: LEVELS.set_inplace_requires_grad_allowed(True),
    open_levels,
    forward_ad.enter_dual_level,
    lambda: entered(PassingFunctions()),
    lambda: entered(Passing()),
    lambda: entered(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)),
    stance,
    lambda: entered(sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
    lambda: torch.rand(1),
    lambda: random.random(),
    lambda: np.random.rand(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_restored(change: Callable[[], object], error: type[BaseException] | None) -> None:
    before = everything()
    with contextlib.suppress(*[error] if error else []), process_state():
        kept = change()  # noqa: F841  (as an interrupted block would keep it)
        changed = everything()
        if error is not None:
            raise error
    assert changed != before
    assert everything() == before


def test_an_interrupt_while_restoring_restores_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    before, original, calls = everything(), random.setstate, []

    def interrupted(state: Any) -> None:
        calls.append(state)
        if len(calls) == 1:
            raise KeyboardInterrupt
        original(state)

    monkeypatch.setattr(random, "setstate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seed_everything()
    assert everything() == before
    assert not others_wait()


def seed_everything() -> None:
    with process_state():
        for change in (torch.manual_seed, np.random.seed, random.seed):
            change(3)


def others_wait() -> bool:
    """Whether another thread would wait for ever."""

    def enter() -> None:
        with process_state():
            pass

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(10)
    return thread.is_alive()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.attention = nn.Linear(4, 6), nn.Linear(6, 3), nn.MultiheadAttention(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))[:, None]
        return self.b(F.scaled_dot_product_attention(h, h, h)[:, 0])


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double().eval()


QUESTIONS = [
    lambda m, x: (
        tpv.estimate(m, x, tpv.Isotropic(0.1), estimator=tpv.LinearizedMonteCarlo(4), chunk_size=3).value
    ),
    lambda m, x: tpv.estimate(m, x, tpv.Isotropic(0.1), estimator=tpv.Exact(), chunk_size=3).value,
    lambda m, x: tpv.linearity(m, x, tpv.Isotropic(0.1), draws=2, chunk_size=3).value,
    lambda m, x: tpv.estimate(m, x, tpv.LabelNoise(0.1, x, tpv.Ridge(0.1))).value,
]


@pytest.mark.parametrize(
    "models", [lambda: [net()] * 4, lambda: [net() for _ in range(4)]], ids=["one", "four"]
)
def test_threads_give_the_right_numbers(models: Callable[[], list[nn.Module]]) -> None:
    x, values, before = randn(9, 4), {}, everything()
    expected = {i: ask(net(), x) for i, ask in enumerate(QUESTIONS)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(3):
            jobs = [
                threading.Thread(target=lambda i=i, model=model: values.update({i: QUESTIONS[i](model, x)}))
                for i, model in enumerate(models())
            ]
            for job in jobs:
                job.start()
            for job in jobs:
                job.join()
            assert values == expected
            values.clear()
    finally:
        sys.setswitchinterval(interval)
    assert everything()[:13] == before[:13]


def interrupting(limit: int) -> Callable[..., Any]:
    """A trace function that interrupts at the given call of a Python function of torch."""
    calls = 0

    def trace(called: Any, event: str, arg: Any) -> None:
        nonlocal calls
        name = called.f_code.co_filename
        if event == "call" and (
            "torch/autograd" in name or "functorch" in name or "torch/_dynamo" in name or "contextlib" in name
        ):
            calls += 1
            if calls == limit:
                sys.settrace(None)
                raise KeyboardInterrupt

    return trace


def interrupts() -> Iterator[int]:
    yield from range(1, 400, 7)


def test_an_interrupt_anywhere_leaves_nothing_open() -> None:
    model, x, survived = net(), randn(3, 4), 0
    expected, before = QUESTIONS[2](model, x), everything()
    for limit in interrupts():
        sys.settrace(interrupting(limit))
        try:
            QUESTIONS[2](model, x)
        except KeyboardInterrupt:
            survived += 1
        finally:
            sys.settrace(None)
        assert everything() == before
    assert survived > 20
    assert not others_wait()
    assert QUESTIONS[2](model, x) == expected


def interrupted_at_exit_of(context: str, model: nn.Module, x: torch.Tensor) -> KeyboardInterrupt:
    """The exception, which holds the context whose exit was skipped, as a notebook holds its last one."""
    exits = contextlib._GeneratorContextManager.__exit__.__code__

    def trace(called: Any, event: str, arg: Any) -> None:
        if event == "call" and called.f_code is exits and called.f_locals["self"].gen.__name__ == context:
            sys.settrace(None)
            raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        QUESTIONS[2](model, x)
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(None)
    raise AssertionError("never interrupted")


def test_an_exit_that_an_interrupt_skipped_is_not_run_later() -> None:
    model, x = net(), randn(3, 4)
    before = everything()
    error = interrupted_at_exit_of("jvp_increment_nesting", model, x)
    assert everything() == before
    LEVELS._jvp_increment_nesting()
    del error
    gc.collect()
    assert LEVELS.get_dynamic_layer_stack_depth() == 1
    LEVELS._jvp_decrement_nesting()
    assert everything() == before


def test_an_interrupt_at_the_very_end_of_a_verb_is_repaired_when_its_exception_goes() -> None:
    model, x = net(), randn(3, 4)
    before = everything()
    error = interrupted_at_exit_of("fixed_point", model, x)
    del error
    gc.collect()
    assert everything() == before
    assert not others_wait()


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------

Q, K, V = (randn(2, 4, 5, 8, seed=seed) for seed in range(3))
MASK = randn(5, 5) > 0
MASK[0] = False  # nothing to attend to


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": MASK}, {"attn_mask": randn(5, 5)}, {"scale": 0.3}]
)
def test_attention_is_that_of_the_math_kernel(options: dict[str, Any]) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(Q, K, V, **options)
    with MathAttention():
        assert torch.equal(F.scaled_dot_product_attention(Q, K, V, **options), expected)
        assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_has_forward_mode(need_weights: bool) -> None:
    layer, x = nn.MultiheadAttention(8, 2).double().eval(), randn(5, 3, 8)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def f(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, w, (x, x, x), {"need_weights": need_weights})[0]

    with MathAttention():
        value, tangent = torch.func.jvp(f, (weights,), (weights,))
        doubled = (
            f({n: w * (1 + 1e-6) for n, w in weights.items()})
            - f({n: w * (1 - 1e-6) for n, w in weights.items()})
        ) / 2e-6
    assert torch.allclose(value, layer(x, x, x)[0], atol=1e-12)
    assert torch.allclose(tangent, doubled, atol=1e-6)
