"""Tensors of a twin: weights on the user's storage, everything else on storage of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tpv.common.errors import TPVError

LARGE = 2**20
"""Bytes beyond which buffers and plain tensors stay on the user's storage until they are written to."""


class Storages:
    """What lies on which storage.

    Storage with a trainable weight on it is shared. Other storage is copied, once, so that tensors that share
    it still do; beyond 1 MiB it is shared too until it is written to (:meth:`separate`).

    Args:
        weights: the trainable parameters.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {key for weight in weights for key in storage_keys(weight)}
        self._copies: dict[int, torch.UntypedStorage] = {}
        self._large: dict[int, list[Tensor]] = {}
        self.originals: dict[int, Tensor] = {}
        self._seen: dict[int, Tensor] = {}
        self._views: dict[int, Tensor] = {}

    def twin(self, tensor: Tensor) -> Tensor:
        """A tensor of the same values without history, on storage as the class says."""
        self._seen[id(tensor)] = tensor
        for key in (keys := storage_keys(tensor)):
            self.originals.setdefault(key, tensor)
        if not _is_strided(tensor):
            shared = keys & self._weights or tensor.numel() * tensor.element_size() > LARGE
            return tensor.detach() if shared else tensor.detach().clone()
        storage = tensor.untyped_storage()
        if keys & self._weights:
            return _on(storage, tensor)
        if storage.nbytes() <= LARGE:
            if storage._cdata not in self._copies:
                self._copies[storage._cdata] = storage.clone()
            return _on(self._copies[storage._cdata], tensor)
        alias = _on(storage, tensor)
        self._large.setdefault(storage.data_ptr(), []).append(alias)
        return alias

    def parameter(self, parameter: nn.Parameter) -> Tensor:
        """Another Parameter of the same type and values."""
        if is_lazy(parameter):
            raise TPVError("the model has lazy layers without weights yet: run it on one batch first.")
        twin, kind = self.twin(parameter), type(parameter)
        if kind is nn.Parameter or not isinstance(parameter, nn.Parameter) or not _is_strided(parameter):
            return nn.Parameter(twin, requires_grad=parameter.requires_grad)
        return torch.Tensor._make_subclass(kind, twin, parameter.requires_grad)

    def plain(self, tensor: Tensor) -> Tensor:
        """A twin that is not a parameter."""
        return self._noted(self.twin(tensor).requires_grad_(tensor.requires_grad))

    def with_history(self, tensor: Tensor) -> Tensor:
        """A tensor computed from others, itself: where a hook computes it in each pass, the old one is not
        used, and where it is used, it lies on a weight or its graph leads to the original, and is refused.
        """
        self.twin(tensor)
        return self._noted(tensor)

    def _noted(self, tensor: Tensor) -> Tensor:
        if storage_keys(tensor) & self._weights:
            self._views[id(tensor)] = tensor
        return tensor

    def viewed(self, tensor: Tensor, weights: Mapping[str, Tensor]) -> str | None:
        """The weight on whose memory a tensor lies that the model holds beside its parameters."""
        if self._views.get(id(tensor)) is not tensor:
            return None
        return next((name for name, weight in weights.items() if _overlap(tensor, weight)), None)

    def separate(self, key: int, written: Tensor) -> bool:
        """Give the twin's large tensors on a storage one of their own, and the one (perhaps a view of them)
        that is about to be written to; False if there are none.
        """
        if key not in self._large or id(written) in self._seen:
            return False
        aliases = self._large.pop(key)
        own = aliases[0].untyped_storage().clone()
        for alias in {id(t): t for t in (*aliases, written)}.values():
            alias.data = _on(own, alias)
        return True


def storage_keys(tensor: Tensor) -> set[int]:
    """The addresses of the memory that a tensor lies on."""
    if is_traceable_wrapper_subclass(tensor):
        return {key for name in tensor.__tensor_flatten__()[0] for key in storage_keys(getattr(tensor, name))}
    if tensor.layout != torch.strided or tensor.is_nested:
        return set()
    try:
        return {tensor.untyped_storage().data_ptr()} - {0}
    except (RuntimeError, NotImplementedError, ValueError):  # tensors of torch.func and lazy ones have none
        return set()


def _overlap(a: Tensor, b: Tensor) -> bool:
    (first, end), (other, its_end) = _span(a), _span(b)
    return bool(storage_keys(a) & storage_keys(b)) and first < its_end and other < end


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and of the one after the last."""
    entries = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + entries * tensor.element_size()


def _is_strided(tensor: Tensor) -> bool:
    return not (
        tensor.layout != torch.strided
        or tensor.is_nested
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or is_traceable_wrapper_subclass(tensor)
        or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    )


def _on(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor on a storage, with a version counter of its own; autograd can use it also where ``like`` was
    made in inference mode.
    """
    empty: Any = torch.empty(0, dtype=like.dtype, device=like.device)
    tensor: Tensor = empty.set_(storage, like.storage_offset(), like.size(), like.stride())
    return (
        tensor if type(like) is Tensor or isinstance(like, nn.Parameter) else tensor.as_subclass(type(like))
    )
