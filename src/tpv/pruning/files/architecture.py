"""The architecture of a pruned network, and how an instance of the unpruned one becomes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError

_CONVS = {kind.__name__: kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_GIVE = "give an unpruned instance of the saved architecture"


@dataclass(frozen=True)
class Architecture:
    """Shapes of every parameter and buffer, and module → its ints, such as a convolution's channels."""

    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def of(model: nn.Module) -> Architecture:
        """That of a model."""
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, Tensor)}
        modules = {name: vars(module).items() for name, module in model.named_modules()}
        sizes = {name: {k: v for k, v in items if _is_size(v)} for name, items in modules.items()}
        return Architecture(shapes, sizes)


def _is_size(value: Any) -> bool:
    parts = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(part, int) and not isinstance(part, bool) for part in parts)


def describe(model: nn.Module, unpruned: Architecture) -> dict[str, Any]:
    """What makes an unpruned instance the pruned model, as plain JSON values."""
    sizes, shortcuts = {}, {}
    for name, now in Architecture.of(model).sizes.items():
        before = unpruned.sizes.get(name, {})
        if changed := {key: value for key, value in now.items() if before.get(key, value) != value}:
            sizes[name] = changed
    for name, m in model.named_modules():  # those that may stand for a padding shortcut
        if type(m) in _CONVS.values() and m.bias is None and not m.weight.requires_grad:
            keys = ("in_channels", "out_channels", "kernel_size", "stride")
            shortcuts[name] = {"type": type(m).__name__} | {key: getattr(m, key) for key in keys}
    return {
        "architecture": dict(unpruned.shapes),
        "sizes": sizes,
        "shortcuts": shortcuts,
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def rebuild(model: nn.Module, contents: Mapping[str, Any], saved: Mapping[str, Tensor]) -> None:
    """Give an unpruned instance, in place, the sizes that ``contents`` of :func:`describe` have, and tensors
    of the saved shapes and dtypes. Contents of anything else raise a KeyError, TypeError or the like.
    """
    replaced = _replace_shortcuts(model, contents["shortcuts"])
    _refuse_others(model, contents["architecture"], replaced, saved)
    modules = dict(model.named_modules())
    for name in saved.keys() - model.state_dict().keys():  # such as a bias that was added
        owner, _, key = name.rpartition(".")
        if getattr(modules.get(owner), key, 0) is None:
            modules[owner].register_parameter(key, nn.Parameter(torch.zeros((), device=_device(model))))
    for name, sizes in contents["sizes"].items():
        for key, value in sizes.items():
            size = tuple(value) if isinstance(value, list) else value
            if not (_is_size(size) and _is_size(getattr(modules.get(name), key, None))):
                raise TPVError(f"{name or 'the model'} has no size {key}, which the saved one has: {_GIVE}.")
            setattr(modules[name], key, size)
    _resize(model.requires_grad_(False), saved)
    for name, p in model.named_parameters():
        p.requires_grad_(name not in contents["frozen"] and p.is_floating_point())


def _replace_shortcuts(model: nn.Module, shortcuts: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Put convolutions in the place of padding shortcuts; their names."""
    modules, replaced = dict(model.named_modules()), set()
    for name, spec in shortcuts.items():
        if name in modules and name and not any(modules[name].state_dict()):
            arguments = {key: value for key, value in spec.items() if key != "type"}
            conv = nn.utils.skip_init(_CONVS[spec["type"]], bias=False, **arguments)
            parent, _, key = name.rpartition(".")
            setattr(modules[parent], key, conv.to(_device(model)))
            replaced.add(name)
    return replaced


def _refuse_others(
    model: nn.Module, unpruned: Mapping[str, Any], replaced: set[str], saved: Mapping[str, Tensor]
) -> None:
    own = Architecture.of(model).shapes
    for name, shape in unpruned.items():
        if name.rpartition(".")[0] in replaced:
            continue
        if name not in own:
            raise TPVError(f"the model has no {name}, which the saved one has: {_GIVE}.")
        if own[name] != tuple(shape):
            raise TPVError(
                f"{name} of the model is of shape {own[name]}, and that of the saved one was {tuple(shape)} "
                f"before pruning: {_GIVE}."
            )
    if more := [name for name in own if name not in unpruned and name not in saved]:
        raise TPVError(f"the saved model has no {more[0]}, which this one has: {_GIVE}.")


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _resize(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Empty tensors where the saved ones have another shape or dtype; tied ones stay tied."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, t in named:
        form = saved.get(name, t)
        if (form.shape, form.dtype) != (t.shape, t.dtype):
            t.data = torch.zeros(form.shape, dtype=form.dtype, device=_device(model))
