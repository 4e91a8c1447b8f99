"""Where a layer's output is added to something else: residual streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tpv.model.batches import tensors

_ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}


@dataclass(frozen=True, eq=False)
class Join:
    """An addition of a layer's output: the slope (channels,) of a BatchNorm between, the other operand."""

    scale: Tensor | None
    other: Tensor


class _Additions(TorchFunctionMode):
    """Reports both orders of every addition of two tensors of one shape."""

    def __init__(self, report: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._report = report

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) > 1:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
                self._report(a, b)
                self._report(b, a)
        return func(*args, **(kwargs or {}))


class UsesOf(TorchFunctionMode):
    """Lists the functions that make a tensor from ``watched``."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: Tensor | None = None
        self.functions: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and any(t is self.watched for t in tensors([args, kwargs or {}])):
            self.functions.append(func.__name__)
        return result


@contextmanager
def joins(model: nn.Module, keep: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, Join]]:
    """A context in which a forward pass puts the first addition of some layers' outputs into the dictionary;
    ``keep`` says which layers, and what to keep of the other operand.

    An output counts as the layer's behind a BatchNorm in evaluation mode, dropout or nothing, and until it is
    modified in place.
    """
    first: dict[str, Join] = {}
    origin: dict[int, tuple[str, Tensor | None, Tensor, int]] = {}

    def hook(name: str) -> Any:
        def note_origin(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in keep:
                origin[id(output)] = (name, None, output, output._version)
            elif isinstance(output, Tensor) and args and (source := source_of(args[0])):
                layer, scale = source
                if slope := _slope_behind(module, scale):
                    origin[id(output)] = (layer, *slope, output, output._version)

        return note_origin

    def source_of(t: Any) -> tuple[str, Tensor | None] | None:
        layer, scale, _, version = origin.get(id(t), ("", None, None, -1))
        return (layer, scale) if layer and t._version == version else None

    def note_addition(a: Tensor, b: Tensor) -> None:
        if source := source_of(a):
            layer, scale = source
            first.setdefault(layer, Join(scale, keep[layer](b)))

    with ExitStack() as hooks:
        hooks.callback(origin.clear)
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(hook(name)))
        hooks.enter_context(_Additions(note_addition))
        yield first


def _slope_behind(module: nn.Module, scale: Tensor | None) -> tuple[Tensor | None] | None:
    """The slope of a layer's output behind one more module; None where the module does more than that."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and scale is None:
        assert module.running_var is not None
        slope = (module.running_var + module.eps).rsqrt()
        return (slope if module.weight is None else slope * module.weight.detach(),)
    return (scale,) if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) else None
