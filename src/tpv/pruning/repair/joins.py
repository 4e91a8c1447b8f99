"""Where a layer's output is added to something else: residual streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tpv.model.batches import tensors

_ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}


@dataclass(frozen=True, eq=False)
class Join:
    """An addition of a layer's output.

    Attributes:
        layer: name of the convolution or linear layer.
        scale: (channels,) the slope of the BatchNorm between it and the addition, None if there is none.
        other: what is kept of the other operand.
    """

    layer: str
    scale: Tensor | None
    other: Tensor


class _Additions(TorchFunctionMode):
    """Tells of every addition of two tensors of one shape."""

    def __init__(self, tell: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ADDITIONS and len(args) > 1:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
                self._tell(a, b)
                self._tell(b, a)
        return func(*args, **(kwargs or {}))


class Readers(TorchFunctionMode):
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
    """A context in which a forward pass leaves the first addition of each of some layers' outputs in the
    dictionary.

    An output counts as the layer's behind a BatchNorm in evaluation mode, dropout or nothing, and until it is
    written over.

    Args:
        keep: layer → what to keep of the other operand.
    """
    found: dict[str, Join] = {}
    origin: dict[int, tuple[str, Tensor | None, Tensor, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in keep:
                origin[id(output)] = (name, None, output, output._version)
            elif (
                isinstance(output, Tensor)
                and args
                and (source := known(args[0]))
                and (passed := _passed(module, source[1]))
            ):
                origin[id(output)] = (source[0], *passed, output, output._version)

        return hook

    def known(t: Any) -> tuple[str, Tensor | None] | None:
        layer, scale, _, version = origin.get(id(t), ("", None, None, -1))
        return (layer, scale) if layer and t._version == version else None

    def tell(a: Tensor, b: Tensor) -> None:
        if source := known(a):
            layer, scale = source
            found.setdefault(layer, Join(layer, scale, keep[layer](b)))

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with _Additions(tell):
            yield found
    finally:
        origin.clear()
        for handle in handles:
            handle.remove()


def _passed(module: nn.Module, scale: Tensor | None) -> tuple[Tensor | None] | None:
    """The slope of a layer's output behind a module too; None where the module does more than that."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and scale is None:
        return (_slope(module),)
    return (scale,) if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) else None


def _slope(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """∂output/∂input of each channel in evaluation mode."""
    assert norm.running_var is not None
    slope = (norm.running_var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * norm.weight.detach()
