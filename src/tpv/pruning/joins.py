"""Where a layer's output is added to something else: residual streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}


@dataclass(frozen=True, eq=False)
class Join:
    """An addition of a layer's output.

    Attributes:
        layer: name of the convolution or linear layer.
        scale: (channels,) the slope of the BatchNorm between it and the addition, None if there is none.
        other: the other operand.
    """

    layer: str
    scale: Tensor | None
    other: Tensor


class _Additions(TorchFunctionMode):
    """Tells of every addition of two tensors of one shape."""

    def __init__(self, tell: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) > 1:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
                self._tell(a, b)
                self._tell(b, a)
        return func(*args, **(kwargs or {}))


@contextmanager
def joins(model: nn.Module, layers: set[str]) -> Iterator[list[Join]]:
    """A context in which forward passes leave the additions of these layers' outputs in the list, in order.

    An output counts as the layer's behind a BatchNorm in evaluation mode, dropout or nothing.
    """
    found: list[Join] = []
    origin: dict[int, tuple[str, Tensor | None, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in layers:
                origin[id(output)] = (name, None, output)
            elif isinstance(output, Tensor) and args and id(args[0]) in origin:
                layer, scale, _ = origin[id(args[0])]
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and scale is None:
                    origin[id(output)] = (layer, _slope(module), output)
                elif isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
                    origin[id(output)] = (layer, scale, output)

        return hook

    def tell(a: Tensor, b: Tensor) -> None:
        if id(a) in origin:
            layer, scale, _ = origin[id(a)]
            found.append(Join(layer, scale, b.detach().clone()))

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with _Additions(tell):
            yield found
    finally:
        origin.clear()
        for handle in handles:
            handle.remove()


def _slope(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """∂output/∂input of each channel in evaluation mode."""
    assert norm.running_var is not None
    slope = (norm.running_var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * norm.weight.detach()
