"""Pruning a model as another one was pruned before."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.model.linearization import Forward
from tpv.pruning.channels.shortcuts import replace_padding_shortcuts
from tpv.pruning.channels.tracing import trace
from tpv.pruning.files.example import zeros

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Recorded:
    """What is known of a pruned model.

    Attributes:
        history: ``[module, whether its outputs, indices]`` of each removal.
        added_biases: modules with a bias that the unpruned model lacks.
        frozen: names of parameters that are not to be trained.
        example: the form of the batch that it was traced with, or None.
        architecture: name → shape of the unpruned model's tensors.
        dtypes: name → dtype of the pruned model's tensors, as safetensors call them.
    """

    history: list[list[Any]]
    added_biases: tuple[str, ...]
    frozen: frozenset[str]
    example: Any
    architecture: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @staticmethod
    def of(found: Mapping[str, Any], dtypes: Mapping[str, str], file: str) -> Recorded:
        """From the contents of a file.

        Raises:
            TPVError: if something is missing or of another type.
        """
        try:
            history = [
                [str(name), bool(outputs), [int(i) for i in indices]]
                for name, outputs, indices in found["history"]
            ]
            shapes = {name: tuple(map(int, shape)) for name, shape in found["architecture"].items()}
            biases, frozen = tuple(map(str, found["added_biases"])), frozenset(map(str, found["frozen"]))
            return Recorded(history, biases, frozen, found["example"], shapes, dtypes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TPVError(f"{file} is broken ({type(error).__name__}: {error}).") from error


def rebuilt(model: nn.Module, recorded: Recorded, example: Any, forward: Forward | None) -> nn.Module:
    """The model, changed in place: without the removed channels, with added biases and fixed shortcuts, in
    the saved dtypes.

    Raises:
        TPVError: if it is of another architecture, or cannot be traced.
    """
    _convert(model, recorded.dtypes)
    batch = _example(model, recorded) if example is None else example
    if _lacks_shortcuts(model, recorded):
        with contextlib.suppress(Exception):  # if it fails, what is missing is told below
            replace_padding_shortcuts(model, batch, forward=forward)
        _convert(model, recorded.dtypes)
    _refuse_another(model, recorded)
    if recorded.history:
        _remove(model, recorded, batch, forward)
    for name in recorded.added_biases:
        _add_bias(model, name, recorded.dtypes)
    return model


def _convert(model: nn.Module, dtypes: Mapping[str, str]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (dtype := _DTYPES.get(dtypes.get(name, ""))) is not None and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _example(model: nn.Module, recorded: Recorded) -> Any:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        return zeros(recorded.example, device)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise TPVError(
            "the form of the batch that the model was pruned with was not kept: give example=, such a batch."
        ) from error


def _lacks_shortcuts(model: nn.Module, recorded: Recorded) -> bool:
    """Whether a module without weights of its own has weights in the file."""
    state, modules = model.state_dict(), dict(model.named_modules())
    owners = {name.rpartition(".")[0] for name in recorded.dtypes if name not in state}
    return any(owner in modules and not any(modules[owner].state_dict()) for owner in owners)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every parameter and buffer, by name."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def _refuse_another(model: nn.Module, recorded: Recorded) -> None:
    found = shapes(model)
    for name, shape in recorded.architecture.items():
        if name not in found:
            raise TPVError(
                f"the model has no {name}, which the saved one has: give an unpruned instance of the saved "
                "architecture."
            )
        if found[name] != shape:
            raise TPVError(
                f"{name} of the model is of shape {found[name]}, and that of the saved one was {shape} "
                "before pruning: "
                "give an unpruned instance of the saved architecture."
            )
    if more := [name for name in found if name not in recorded.architecture and name not in recorded.dtypes]:
        raise TPVError(
            f"the saved model has no {more[0]}, which this one has: give an unpruned instance of the saved "
            "architecture."
        )


def _remove(model: nn.Module, recorded: Recorded, batch: Any, forward: Forward | None) -> None:
    graph = trace(model, batch, forward)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.load_pruning_history(recorded.history)
    except Exception as error:
        raise TPVError(
            f"the channels in the history cannot be removed from this model ({type(error).__name__}: "
            f"{error})."
        ) from error


def _add_bias(model: nn.Module, name: str, dtypes: Mapping[str, str]) -> None:
    modules = dict(model.named_modules())
    layer = modules.get(name)
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, torch.Tensor):
        raise TPVError(
            f"the saved model has an added bias in {name!r}, which is no convolution or linear layer in this "
            "one."
        )
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    layer.bias = nn.Parameter(
        weight.new_zeros(width, dtype=_DTYPES.get(dtypes.get(f"{name}.bias", ""), weight.dtype))
    )
