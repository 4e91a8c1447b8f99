"""How a copier copies modules and tensors."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from tpv.model.copier import Copier, Handler
from tpv.model.storages import Storages


class Unwrapped(nn.Module):
    """What torch.compile or DistributedDataParallel wraps, run as written and under the same name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module inside gives."""
        return self._modules[self._name](*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self._name), name)


_c: Any = torch._C
_jit: Any = torch.jit
_OWN = vars(nn.Module()).keys()


def _module(original: nn.Module, copy: Copier) -> nn.Module:
    if (wrapped := _wrapped_name(original)) is not None:
        return _unwrapped(original, wrapped, copy)
    kind = type(original)
    if hasattr(kind, "__del__"):  # what it would release is the original's
        kind = type(kind.__name__, (kind,), {"__del__": lambda self: None, "__module__": kind.__module__})
    copied = copy.attributes(original, copy.note(original, object.__new__(kind)))
    vars(copied).pop("_compiled_call_impl", None)
    return copied  # type: ignore[no-any-return]


def _wrapped_name(module: nn.Module) -> str | None:
    frame: Any = sys.modules.get("torch._dynamo.eval_frame")
    if frame is not None and isinstance(module, frame.OptimizedModule):
        return "_orig_mod"
    parallel = nn.parallel.DataParallel, nn.parallel.DistributedDataParallel
    return "module" if isinstance(module, parallel) else None


def _unwrapped(original: nn.Module, name: str, copy: Copier) -> nn.Module:
    copied = copy.note(original, Unwrapped(name))
    vars(copied).update({key: copy(value) for key, value in vars(original).items() if key in _OWN})
    return copied  # type: ignore[no-any-return]


def _traced(original: Any, copy: Copier) -> Any:
    return copy.note(original, torch.jit._recursive.wrap_cpp_module(_in_cpp(original._c, copy)))


def _in_cpp(original: Any, copy: Copier) -> Any:
    """A traced module in C++, with the twin's tensors."""
    copied = original.__copy__()
    for name, tensor in (*_c.ParameterDict(original).items(), *_c.BufferDict(original).items()):
        copied.setattr(name, copy(tensor))
    for name, module in _c.ModuleDict(original).items():
        copied.setattr(name, _in_cpp(module, copy))
    return copied


def _generator(original: torch.Generator, copy: Copier) -> Any:
    return copy.note(original, original.clone_state())


def handlers(storages: Storages) -> dict[type, Handler]:
    """For modules, and for tensors on these storages."""

    def tensor(original: Tensor, copy: Copier) -> Tensor:
        if original.grad_fn is not None:
            return copy.note(original, storages.with_history(original))  # type: ignore[no-any-return]
        if isinstance(original, nn.Parameter):
            copied = storages.parameter(original)
        else:
            copied = storages.plain(original)
        copy.note(original, copied)
        vars(copied).update({name: copy(value) for name, value in vars(original).items()})
        return copied

    return {
        nn.Module: _module,
        _jit.RecursiveScriptModule: _traced,
        Tensor: tensor,
        torch.Generator: _generator,
    }
