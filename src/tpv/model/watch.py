"""Refusing writes into the user's tensors before they happen, and uses of the user's own weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tpv.common.errors import TPVError
from tpv.model.storages import Storages, storage_keys


class Watch:
    """What there is to protect of a user's model, while its twin runs.

    Args:
        names: ``id`` of the user's tensor → its name.
        weights: the user's trainable parameters.
        storages: where the twin's tensors lie.
    """

    def __init__(self, model: nn.Module, storages: Storages) -> None:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._names = {key: name for name, tensor in tensors for key in storage_keys(tensor)}
        self._weights = {id(p): (p, name) for name, p in model.named_parameters() if p.requires_grad}
        self._storages = storages

    def forward(self) -> AbstractContextManager[Callable[[Tensor], None]]:
        """A context in which a forward pass of the twin is watched; the function that it gives checks the
        outputs.

        Raises:
            TPVError: if it writes to the weights, or uses those of the model that the user gave.
        """
        return _Watching(self, "the model's forward pass", reads=True)

    def callback(self, what: str) -> AbstractContextManager[object]:
        """A context for a function of the user's, which may read the weights and must not write to them.

        Args:
            what: who it is, for the message.

        Raises:
            TPVError: before it writes to a weight or a buffer.
        """
        return _Watching(self, what, reads=False)

    def refuse_write(self, tensor: Tensor, what: str) -> None:
        """Before a tensor is written to.

        Raises:
            TPVError: if it lies on storage of the user's.
        """
        for key in storage_keys(tensor):
            if key in self._storages.originals and not self._storages.separate(key, tensor):
                name = repr(self._names[key]) if key in self._names else "a tensor of the model"
                raise TPVError(
                    f"{what} writes into {name}, and a model is never changed: use an operation that is not "
                    "in place (w * 2 instead of w.mul_(2))."
                )

    def refuse_read(self, tensor: Tensor) -> None:
        """Before a tensor is used in a forward pass.

        Raises:
            TPVError: if it is a weight of the user's model, and not of its twin, or an attribute that lies
                on the memory of a weight without being a parameter.
        """
        if (pair := self._weights.get(id(tensor))) is not None and pair[0] is tensor:
            raise TPVError(_UNREACHED.format(name=pair[1]))
        weights = {name: weight for weight, name in self._weights.values()}
        if (viewed := self._storages.viewed(tensor, weights)) is not None:
            raise TPVError(_UNREACHED.format(name=viewed))

    def check_graph(self, outputs: Tensor) -> None:
        """Refuse outputs that depend on the user's own weights, through tensors that were computed before."""
        seen, stack = set[Any](), [outputs.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if (variable := getattr(node, "variable", None)) is not None:
                self.refuse_read(variable)
            stack += [following for following, _ in node.next_functions]


_UNREACHED = (
    "the outputs use {name!r} through something that a perturbation would not reach, such as a global name "
    "or an attribute computed from weights before: use the module that forward= is given, keep parts of the "
    "model as its attributes, and compute what depends on weights in each pass."
)
_watches: weakref.WeakKeyDictionary[nn.Module, Watch] = weakref.WeakKeyDictionary()


def watch_twin(twin: nn.Module, model: nn.Module, storages: Storages) -> None:
    """Remember what belongs to a twin for :func:`watch_of`."""
    _watches[twin] = Watch(model, storages)


def watch_of(model: nn.Module) -> Watch:
    """The watch of a twin; of any other model, one that finds nothing."""
    known = _watches.get(model)
    return Watch(nn.Module(), Storages(())) if known is None else known


class _Watching(TorchDispatchMode):
    """Looks at every operation before it runs."""

    supports_higher_order_operators = True

    def __init__(self, watch: Watch, what: str, *, reads: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch, self._what, self._reads = watch, what, reads
        self._written: dict[Any, list[tuple[int, str]]] = {}

    def __enter__(self) -> Callable[[Tensor], None]:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self._watch.check_graph

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if isinstance(error, ValueError) and "read-only" in str(error):
            raise TPVError(
                f"{self._what} writes into a NumPy array of more than 1 MiB, and a model is never changed: "
                "write into a copy of the array."
            ) from error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._reads:
            for tensor in _tensors(args):
                self._watch.refuse_read(tensor)
        for position, name in self._written_arguments(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in _tensors((value,)):
                self._watch.refuse_write(tensor, self._what)
        return func(*args, **kwargs)

    def _written_arguments(self, func: Any) -> list[tuple[int, str]]:
        """Positions and names of the arguments that an operation writes to."""
        if func not in self._written:
            arguments = getattr(getattr(func, "_schema", None), "arguments", ())
            written = [
                (i, argument.name)
                for i, argument in enumerate(arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            self._written[func] = [] if func in _MOVES_ONLY else written
        return self._written[func]


_MOVES_ONLY = {
    torch.ops.aten.set_.source_Storage,
    torch.ops.aten.set_.source_Storage_storage_offset,
    torch.ops.aten.set_.source_Tensor,
    torch.ops.aten.set_.default,
    torch.ops.aten._cudnn_rnn_flatten_weight.default,
}
"""Operations that only give the twin's tensor another storage, and write nothing."""


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)
