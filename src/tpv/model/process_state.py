"""The one owner of what is process-wide: random numbers, torch's switches, levels and modes, and a lock."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as pop_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode

from tpv.common.warn import begin_call

_functorch: Any = torch._C._functorch
_c: Any = torch._C
_lock = threading.RLock()
Restore = Callable[[], None]


class process_state:  # noqa: N801  (used like a function)
    """A context in which one thread at a time works, and whose end restores whatever is process-wide.

    Forward-mode levels and the compiler's stance belong to the process, so that verbs of several threads take
    turns. The lock is re-entrant: verbs call each other. What is restored, whatever raises or interrupts:
    the random states of Python, NumPy and torch, grad modes, the levels of ``torch.func`` and forward-mode
    AD, the stacks of modes and of hooks of saved tensors, the attention kernels that are allowed, the
    compiler's stance and the default dtype. Within it, a default device "meta" is the CPU.

    A verb that a thread started by a callback of another verb calls has to wait for that verb: do not wait
    for the thread in the callback.
    """

    def __enter__(self) -> None:
        _lock.acquire()
        try:
            self._restores = _snapshot()
            self._inference: AbstractContextManager[object] = (
                torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
            )
            self._inference.__enter__()
        except BaseException:
            _lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _run_all([lambda: _close_contexts(trace), self._leave_inference, *self._restores])
        finally:
            _lock.release()

    def _leave_inference(self) -> None:
        self._inference.__exit__(None, None, None)


def eager() -> AbstractContextManager[object]:
    """Compiled modules run as written, so that the calls inside of them can be recorded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def differentiable_kernels(module: nn.Module) -> Iterator[None]:
    """Recurrent layers run without cuDNN, whose kernels have no backward pass in evaluation mode."""
    enabled = _c._get_cudnn_enabled()
    if any(isinstance(m, nn.RNNBase) for m in module.modules()):
        _c._set_cudnn_enabled(False)
    try:
        yield
    finally:
        _c._set_cudnn_enabled(enabled)


def _close_contexts(trace: TracebackType | None) -> None:
    """Leave the contexts written as generators whose exit an interrupt has skipped.

    Else the garbage collector would leave them at some later time, and close what is somebody else's.
    """
    while trace is not None:
        context = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code is _GENERATOR_EXIT and context is not None and not context.gen.gi_running:
            with suppress(Exception):
                context.gen.close()
        trace = trace.tb_next


_GENERATOR_EXIT = contextlib._GeneratorContextManager.__exit__.__code__


def _run_all(steps: list[Restore]) -> None:
    """Every step, also when Ctrl-C comes in between: it is raised again when all are done."""
    interrupt: KeyboardInterrupt | None = None
    for step in steps:
        try:
            step()
        except KeyboardInterrupt as error:
            interrupt = error
            step()
    if interrupt is not None:
        raise interrupt


def _snapshot() -> list[Restore]:
    """How to restore each kind of state, modes first, because they would see what follows."""
    state = [_default_device(), _modes(), _levels(), _switches(), _attention(), _stance()]
    return [*state, *_random_states(), begin_call()]


def _default_device() -> Restore:
    """Makes tensors real where the default device is "meta", on which they have no values."""
    loaded: Any = sys.modules.get("torch.utils._device")
    modes: list[Any] = [] if loaded is None else _get_current_function_mode_stack()
    contexts = [mode for mode in modes if isinstance(mode, loaded.DeviceContext)]
    at_meta = [(context, context.device) for context in contexts if context.device.type == "meta"]
    for mode, _ in at_meta:
        mode.device = torch.device("cpu")

    def restore() -> None:
        for mode, device in at_meta:
            mode.device = device

    return restore


def _modes() -> Restore:
    function_modes, dispatch_modes = _c._len_torch_function_stack(), _c._len_torch_dispatch_stack()
    hooks = _c._autograd._top_saved_tensors_default_hooks(True)

    def restore() -> None:
        while _c._len_torch_function_stack() > function_modes:
            pop_function_mode()
        while _c._len_torch_dispatch_stack() > dispatch_modes:
            pop_dispatch_mode()
        while (top := _c._autograd._top_saved_tensors_default_hooks(True)) is not None and top != hooks:
            _c._autograd._pop_saved_tensors_default_hooks()

    return restore


def _levels() -> Restore:
    """Of ``torch.func`` and of forward-mode AD."""
    depth, forward, transforms = _depth(), forward_ad._current_level, _eager_transforms()
    nesting = getattr(transforms, "JVP_NESTING", 0)

    def restore() -> None:
        while forward_ad._current_level > forward:
            forward_ad.exit_dual_level()
        while _depth() > depth:
            _close_level()
        if transforms is not None:
            transforms.JVP_NESTING = nesting

    return restore


def _depth() -> int:
    return int(_functorch.get_dynamic_layer_stack_depth())


def _close_level() -> None:
    kinds = _functorch.TransformType
    closing = {
        kinds.Vmap: _functorch._vmap_decrement_nesting,
        kinds.Jvp: _functorch._jvp_decrement_nesting,
        kinds.Grad: _functorch._grad_decrement_nesting,
        kinds.Functionalize: _functorch._func_decrement_nesting,
    }
    closing[_functorch.peek_interpreter_stack().key()]()


def _eager_transforms() -> Any:
    return sys.modules.get("torch._functorch.eager_transforms")


def _switches() -> Restore:
    grad, forward_grad, dtype = torch.is_grad_enabled(), _c._is_fwd_grad_enabled(), torch.get_default_dtype()
    inplace, cudnn = _functorch.get_inplace_requires_grad_allowed(), _c._get_cudnn_enabled()

    def restore() -> None:
        torch.set_grad_enabled(grad)
        _c._set_fwd_grad_enabled(forward_grad)
        _functorch.set_inplace_requires_grad_allowed(inplace)
        _c._set_cudnn_enabled(cudnn)
        torch.set_default_dtype(dtype)

    return restore


def _attention() -> Restore:
    kinds = [k for k in ("flash", "mem_efficient", "math", "cudnn") if hasattr(_c, f"_get_{k}_sdp_enabled")]
    setters = {kind: "sdp_use_" + kind for kind in kinds}
    before = {setters[kind]: getattr(_c, f"_get_{kind}_sdp_enabled")() for kind in kinds}

    def restore() -> None:
        for setter, enabled in before.items():
            getattr(_c, f"_set_{setter}")(enabled)

    return restore


def _stance() -> Restore:
    frame: Any = sys.modules.get("torch._dynamo.eval_frame")
    before = None if frame is None else frame._stance

    def restore() -> None:
        now: Any = sys.modules.get("torch._dynamo.eval_frame")
        if now is not None and hasattr(now, "_stance"):
            now._stance = before if before is not None else now.DynamoStance()

    return restore


def _random_states() -> list[Restore]:
    python, cpu = random.getstate(), torch.get_rng_state()
    restores: list[Restore] = [lambda: random.setstate(python), lambda: torch.set_rng_state(cpu)]
    if torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all()
        restores.append(lambda: torch.cuda.set_rng_state_all(cuda))
    if (numpy := sys.modules.get("numpy")) is not None:
        state = numpy.random.get_state()
        restores.append(lambda: numpy.random.set_state(state))
    return restores
