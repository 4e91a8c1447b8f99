"""Shortcuts that pad with zero channels as fixed convolutions, which dependency graphs can follow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.model.batches import call_model
from tpv.model.checks import check_module
from tpv.model.linearization import Forward
from tpv.model.twin import twin_of
from tpv.model.watch import watch_of

_CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_PROBED = 13
"""Pixels along each axis: enough to distinguish strides up to 5."""
_Call = tuple[Tensor, Tensor]
"""An input of a module, with its output."""


def replace_padding_shortcuts(model: nn.Module, example: Any, *, forward: Forward | None = None) -> list[str]:
    r"""Replace, in place, shortcuts that copy every s-th pixel and pad channels with zeros by the convolution
    that does the same.

    .. math:: y_{j, p} = \sum_c W_{jc}\, x_{c, s p}, \qquad W_{jc} \in \{0, 1\},
        \quad \text{at most one 1 in a row.}

    Such shortcuts (option A of the CIFAR ResNets, ``F.pad(x[:, :, ::2, ::2], ...)``) have no parameters, and
    tools that follow channels through a network, such as Torch-Pruning, take both sides of the addition for
    the same channels. A bias-free 1×1 convolution with the frozen weight W has the same outputs bit for bit
    (but that a −0 becomes +0), and its channels can be followed. The convolutions add ``<name>.weight`` to
    the model's state dict.

    Candidates are modules without parameters, buffers and hooks whose one tensor (N, C, ...), of one to three
    spatial axes, comes out with another number of channels. Their map is read from a tensor of distinct
    numbers, and W must then give equal outputs for the input that ``example`` brings and for random ones of
    two sizes; a module that does anything else, or has a stride above 5, is left alone.

    Args:
        model: changed in place; a module used under several names is replaced under all of them.
        example: a batch to run the model on: a tensor, a tuple whose first element is the input, or a mapping
            of keywords.
        forward: ``(model, batch) -> outputs`` for batches of another form.

    Returns:
        The names of the replaced modules, none where there are none: calling it again changes nothing.

    Raises:
        TPVError: if ``model`` is not an ``nn.Module``, or for a model that is such a shortcut itself.

    Cost: one forward pass.

    Source: option A is of He et al., "Deep Residual Learning for Image Recognition" (2016), section 3.3.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tpv.pruning import replace_padding_shortcuts
        >>> class Shortcut(nn.Module):
        ...     def forward(self, x):
        ...         return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), Shortcut())
        >>> replace_padding_shortcuts(model, torch.randn(1, 3, 8, 8)), model[1]
        (['1'], Conv2d(4, 8, kernel_size=(1, 1), stride=(2, 2), bias=False))
    """
    check_module(model)
    with twin_of(model, forward) as (twin, run), torch.no_grad():
        calls = _calls_of_stateless_modules(twin, example, run or call_model)
        replacements = {m: conv for m, seen in calls.items() if (conv := _convolution(m, seen)) is not None}
        names = {name: m for name, m in twin.named_modules() if m in replacements}
    convolutions = {model.get_submodule(name): replacements[m] for name, m in names.items()}
    if model in convolutions:
        raise TPVError(
            "the model itself is a padding shortcut and cannot be replaced in place: wrap it, "
            "nn.Sequential(model)."
        )
    places = {f"{prefix}{key}": (parent, key) for parent, key, prefix in _outermost(model, convolutions)}
    changes = [(parent, key, convolutions[parent.get_submodule(key)]) for parent, key in places.values()]
    for parent, key, conv in changes:
        parent._modules[key] = conv
    return list(places)


def _outermost(
    model: nn.Module, convolutions: dict[nn.Module, nn.Module], prefix: str = ""
) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, key, prefix of its name) of the modules to replace, but of none inside another."""
    for key, child in model._modules.items():
        if child in convolutions:
            yield model, key, prefix
        elif child is not None:
            yield from _outermost(child, convolutions, f"{prefix}{key}.")


def _calls_of_stateless_modules(
    model: nn.Module, example: Any, forward: Forward
) -> dict[nn.Module, list[_Call]]:
    """The calls of modules without state or hooks that are only ever called with a tensor, for a tensor."""
    calls: dict[nn.Module, list[_Call]] = {}
    others: set[nn.Module] = set()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.setdefault(module, []).append((args[0].clone(), output.clone()))
        else:
            others.add(module)

    handles = []
    for m in model.modules():
        stateful = any(True for _ in (*m.parameters(), *m.buffers()))
        if not (stateful or m._forward_hooks or m._forward_pre_hooks):
            handles.append(m.register_forward_hook(hook, with_kwargs=True))
    try:
        with watch_of(model).forward():
            forward(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {module: seen for module, seen in calls.items() if module not in others}


def _convolution(module: nn.Module, calls: list[_Call]) -> nn.Module | None:
    """The convolution with the module's outputs for all its calls and for random inputs; None if there is
    none.
    """
    x, y = calls[0]
    same_form = x.ndim in _CONVS and y.ndim == x.ndim and len(x) == len(y) and x.is_floating_point()
    if not same_form or x.shape[1] == y.shape[1] or (conv := _from_distinct_numbers(module, x)) is None:
        return None
    generator = torch.Generator().manual_seed(0)
    for size in (x.shape, (2, x.shape[1], *[_PROBED + 1] * (x.ndim - 2))):
        random = torch.randn(size, generator=generator).to(x)
        if (output := _output(module, random)) is None:
            return None
        calls = [*calls, (random, output)]
    return conv.train(module.training) if all(_equal(conv, *call) for call in calls) else None


def _equal(conv: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether all outputs are the same numbers, without the rounding of a GPU's TF32."""
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        out = _output(conv, x)
    return out is not None and out.dtype == y.dtype and torch.equal(out, y)


def _from_distinct_numbers(module: nn.Module, x: Tensor) -> nn.Module | None:
    """The convolution that puts distinct numbers where the module puts them."""
    channels, dims, pixels = x.shape[1], x.ndim - 2, _PROBED ** (x.ndim - 2)
    numbers = torch.arange(1, channels * pixels + 1, dtype=torch.float64, device=x.device)
    y = _output(module, numbers.reshape(1, channels, *[_PROBED] * dims))
    if y is None or y.ndim != x.ndim or len(y) != 1 or y.dtype != torch.float64:
        return None
    strides = [next((s for s in range(1, 14) if math.ceil(_PROBED / s) == n), 0) for n in y.shape[2:]]
    if 0 in strides or not ((y == y.round()) & (y >= 0) & (y <= numbers[-1])).all():
        return None
    origin = y[0].reshape(y.shape[1], -1)[:, 0].long()
    copied = origin > 0
    conv: nn.Module = nn.utils.skip_init(
        _CONVS[x.ndim], channels, y.shape[1], 1, strides, bias=False, device=x.device, dtype=x.dtype
    )
    source = (origin - 1).div(pixels, rounding_mode="floor")
    conv.get_parameter("weight").zero_()[copied.nonzero()[:, 0], source[copied]] = 1
    return conv.requires_grad_(False)


def _output(module: nn.Module, x: Tensor) -> Tensor | None:
    """The output for another input; None where the module raises or gives something else than a tensor."""
    try:
        y = module(x)
    except Exception:  # a module of the user's: whatever it raises, it does not take such an input
        return None
    return y if isinstance(y, Tensor) else None
