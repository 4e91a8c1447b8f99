"""A pass with other weights in the place of a module's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from tpv.model.process_state import differentiable_kernels


class Substitution:
    """Calls a module with some of its parameters and buffers replaced, wherever they are held.

    ``torch.func.functional_call`` replaces the tensors of a module that has several names once under each,
    and takes the replacement for the original when it restores them (torch 2.13).
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        named = [*module.named_parameters(), *module.named_buffers()]
        first = {id(tensor): name for name, tensor in named}
        self._places: dict[str, list[str]] = {name: [] for name in first.values()}
        for path, part in module.named_modules():
            for local, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if id(tensor) in first:
                    self._places[first[id(tensor)]].append(f"{path}.{local}".lstrip("."))

    def __call__(self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Any = None) -> Any:
        """What the module gives."""
        placed = {place: value for name, value in tensors.items() for place in self._places[name]}
        with differentiable_kernels(self._module):
            return functional_call(self._module, placed, args, kwargs, tie_weights=False)
