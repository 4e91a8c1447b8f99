"""The architecture of a pruned network, and how an instance of the unpruned one becomes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError

Sizes = dict[str, dict[str, Any]]
"""Module → {attribute: int or tuple of ints}, such as a convolution's ``out_channels``."""
_CONVS = {kind.__name__: kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_FRESH = "give an unpruned instance of the saved architecture"


@dataclass(frozen=True)
class Architecture:
    """What is known of a network without its weights.

    Attributes:
        shapes: of every parameter and buffer, by name.
        sizes: the ints and tuples of ints that modules hold.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: Sizes

    @staticmethod
    def of(model: nn.Module) -> Architecture:
        """That of a model."""
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)}
        sizes = {name: _sizes(module) for name, module in model.named_modules()}
        return Architecture(shapes, sizes)


def _sizes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if _is_size(value)}


def _is_size(value: Any) -> bool:
    parts = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(part, int) and not isinstance(part, bool) for part in parts)


def describe(model: nn.Module, unpruned: Architecture) -> dict[str, Any]:
    """What makes an unpruned instance the pruned model, as plain JSON values."""
    changed: Sizes = {}
    for name, module in model.named_modules():
        before = unpruned.sizes.get(name, {})
        now = {key: value for key, value in _sizes(module).items() if before.get(key, value) != value}
        changed |= {name: now} if now else {}
    added = [n.rpartition(".") for n in Architecture.of(model).shapes if n not in unpruned.shapes]
    return {
        "architecture": {name: list(shape) for name, shape in unpruned.shapes.items()},
        "sizes": changed,
        "shortcuts": _shortcuts(model),
        "added_biases": [owner for owner, _, kind in added if kind == "bias"],
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def _shortcuts(model: nn.Module) -> dict[str, Any]:
    """The frozen convolutions that may stand for a padding shortcut of the unpruned network."""
    convolutions = {}
    for name, m in model.named_modules():
        if type(m) in _CONVS.values() and m.bias is None and not m.weight.requires_grad:
            spec = {"type": type(m).__name__, "in_channels": m.in_channels, "out_channels": m.out_channels}
            convolutions[name] = spec | {"kernel_size": list(m.kernel_size), "stride": list(m.stride)}
    return convolutions


@dataclass(frozen=True)
class Description:
    """Contents of :func:`describe`, checked."""

    architecture: dict[str, tuple[int, ...]]
    sizes: Sizes
    shortcuts: dict[str, dict[str, Any]]
    added_biases: tuple[str, ...]
    frozen: frozenset[str]

    @staticmethod
    def of(contents: Mapping[str, Any], file: str) -> Description:
        """From the contents of a file.

        Raises:
            TPVError: if something is missing or of another type.
        """
        try:
            sizes = {name: _checked_sizes(changed) for name, changed in contents["sizes"].items()}
            shortcuts = {name: _checked_shortcut(spec) for name, spec in contents["shortcuts"].items()}
            shapes = {name: tuple(map(int, shape)) for name, shape in contents["architecture"].items()}
            biases, frozen = contents["added_biases"], frozenset(map(str, contents["frozen"]))
            return Description(shapes, sizes, shortcuts, tuple(map(str, biases)), frozen)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TPVError(f"{file} is broken ({type(error).__name__}: {error}).") from error

    def apply(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        """Give the model, in place, the sizes of the pruned one and tensors of the saved shapes and dtypes.

        Args:
            model: an unpruned instance.
            saved: name → a tensor of the saved shape and dtype, on the meta device.

        Raises:
            TPVError: for a model of another architecture.
        """
        replaced = self._replace_shortcuts(model)
        self._refuse_others(model, replaced, saved)
        modules = dict(model.named_modules())
        for name in self.added_biases:
            if not hasattr(modules.get(name), "bias") or f"{name}.bias" not in saved:
                raise TPVError(
                    f"the saved model has an added bias in {name!r}, where this one cannot have any."
                )
            modules[name].register_parameter("bias", nn.Parameter(torch.zeros(())))
        for name, changed in self.sizes.items():
            for key, value in changed.items():
                if not _is_size(getattr(modules.get(name), key, None)):
                    raise TPVError(f"{name or 'the model'} has no {key}, which the saved one has: {_FRESH}.")
                setattr(modules[name], key, value)
        _resize(model, saved)
        for name, p in model.named_parameters():
            p.requires_grad_(name not in self.frozen and p.is_floating_point())

    def _replace_shortcuts(self, model: nn.Module) -> set[str]:
        """Put convolutions in the place of padding shortcuts; their names."""
        modules, replaced = dict(model.named_modules()), set()
        for name, spec in self.shortcuts.items():
            if name in modules and name and not any(modules[name].state_dict()):
                parent, _, key = name.rpartition(".")
                arguments = {k: v for k, v in spec.items() if k != "type"}
                conv = nn.utils.skip_init(_CONVS[spec["type"]], bias=False, **arguments)
                setattr(modules[parent], key, conv.to(_device(model)))
                replaced.add(name)
        return replaced

    def _refuse_others(self, model: nn.Module, replaced: set[str], saved: Mapping[str, Tensor]) -> None:
        own = Architecture.of(model).shapes
        known = {n: shape for n, shape in self.architecture.items() if n.rpartition(".")[0] not in replaced}
        for name, shape in known.items():
            if name not in own:
                raise TPVError(f"the model has no {name}, which the saved one has: {_FRESH}.")
            if own[name] != shape:
                raise TPVError(
                    f"{name} of the model is of shape {own[name]}, and that of the saved one was {shape} "
                    f"before pruning: {_FRESH}."
                )
        if more := [name for name in own if name not in self.architecture and name not in saved]:
            raise TPVError(f"the saved model has no {more[0]}, which this one has: {_FRESH}.")


def _checked_sizes(changed: Any) -> dict[str, Any]:
    sizes = {str(k): tuple(v) if isinstance(v, list) else v for k, v in changed.items()}
    if not all(map(_is_size, sizes.values())):
        raise ValueError(f"sizes {changed}")
    return sizes


def _checked_shortcut(spec: Any) -> dict[str, Any]:
    if spec["type"] not in _CONVS or not all(
        _is_size(tuple(v) if isinstance(v, list) else v) for k, v in spec.items() if k != "type"
    ):
        raise ValueError(f"shortcut {spec}")
    return dict(spec)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _resize(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """New tensors where the saved ones have another shape or dtype; tied ones stay tied."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    forms = {id(t): saved[name] for name, t in named if name in saved}
    new: dict[int, Tensor] = {}
    for name, t in named:
        form = forms.get(id(t), t)
        if (form.shape, form.dtype) == (t.shape, t.dtype):
            continue
        if id(t) not in new:
            zeros = torch.zeros(form.shape, dtype=form.dtype, device=_device(model))
            new[id(t)] = nn.Parameter(zeros, requires_grad=False) if isinstance(t, nn.Parameter) else zeros
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, new[id(t)])
