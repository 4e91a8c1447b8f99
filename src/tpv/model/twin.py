"""A twin of a model: the same tree of modules on the same weights, and everything else its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.model.callables import CALLABLES
from tpv.model.containers import CONTAINERS
from tpv.model.copier import Copier
from tpv.model.modules import handlers
from tpv.model.parametrized import with_plain_weights
from tpv.model.process_state import process_state
from tpv.model.reach import leading_to
from tpv.model.storages import Storages
from tpv.model.watch import watch_twin

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, eq=False)
class Twin:
    """A model to work on in the place of the user's.

    Its trainable parameters are new ones on the same storage, so that no memory is doubled. Buffers, frozen
    parameters, plain tensors, attributes, hooks and whatever else is reached from the modules are copied;
    tensors beyond 1 MiB, when the watched first pass is about to write to them. What cannot or should not be
    copied is shared: locks, files, pools, loggers, optimizers, generators, objects with ``__del__``. Modules
    of ``torch.compile`` and ``DistributedDataParallel`` run as written, under their names.

    What the copy does not reach: writes by NumPy into the memory of weights, tensors and models that are
    class attributes or global names of another file, and state of a class. Functions of the user's that
    record from hooks fill the twin's copies of their lists.
    """

    model: nn.Module
    _copier: Copier

    def remapped(self, function: Any) -> Any:
        """A function or object of the user's that uses the twin where it would use the model.

        Whatever does not refer to the model stays the user's own.
        """
        if function is None or self._copier.known(function):
            return self._copier(function)
        try:
            self._copier.only = leading_to(function, self._copier.changed, self._copier)
            return self._copier(function)
        finally:
            self._copier.only = None


def make_twin(model: nn.Module, *, frozen_gradients: bool = False) -> Twin:
    """The twin of a model.

    Args:
        model: the user's.
        frozen_gradients: let frozen floating-point parameters require gradients in the twin.

    Raises:
        TPVError: for a model with lazy layers that have not run, or nested too deeply.
    """
    storages = Storages(p for p in model.parameters() if p.requires_grad)
    copier = Copier(CONTAINERS | CALLABLES | handlers(storages))
    copier.expect([*model.modules(), *model.parameters(), *model.buffers()])
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
        try:
            twin = copier(model)
        except RecursionError as error:
            raise TPVError(
                f"the model ({type(model).__name__}) holds objects nested too deeply to be copied: raise "
                "sys.setrecursionlimit, or keep them outside of the model."
            ) from error
    if frozen_gradients:
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.requires_grad or parameter.is_floating_point())
    watch_twin(twin, model, storages)
    return Twin(twin, copier)


@contextmanager
def twin_of(
    model: nn.Module, forward: Forward | None = None, *, plain_weights: bool = False
) -> Iterator[tuple[nn.Module, Any]]:
    """The twin of a model and ``forward`` remapped to it; process-wide state is restored at the end. With
    ``plain_weights`` frozen parameters require gradients in it, and parametrized weights are parameters.

    Raises:
        TPVError: as :func:`make_twin`.
    """
    with process_state():
        twin = make_twin(model, frozen_gradients=plain_weights)
        if plain_weights:
            with_plain_weights(twin.model)
        yield twin.model, twin.remapped(forward)
