"""Several scalars read in one transfer per device, because each read stalls the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_WITH_NORMS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """The values of tensors with one element each.

    Example:
        >>> numbers([torch.tensor(2.0), torch.tensor([True])])
        [2.0, 1.0]
    """
    values = [0.0] * len(scalars)
    for places in _by_device(scalars).values():
        stacked = torch.stack([scalars[i].detach().reshape(()).double() for i in places])
        for i, value in zip(places, stacked.tolist(), strict=True):
            values[i] = value
    return values


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, None if there is none.

    Example:
        >>> non_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
        'b'
    """
    floats = {
        n: t.detach() for n, t in tensors.items() if t.is_floating_point() and t.numel() and not t.is_meta
    }
    normed = [n for n, t in floats.items() if t.dtype in _WITH_NORMS and t.layout is torch.strided]
    largest = dict(zip(normed, _largest([floats[n] for n in normed]), strict=True))
    flags = [largest[n].isfinite() if n in largest else t.isfinite().all() for n, t in floats.items()]
    return next((n for n, finite in zip(floats, numbers(flags), strict=True) if not finite), None)


def moved_together(tensors: Mapping[str, Tensor], devices: Mapping[str, torch.device]) -> dict[str, Tensor]:
    """Each tensor on its device; single numbers of one dtype in one copy."""
    moved = dict(tensors)
    groups: dict[tuple[torch.device, torch.device, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 0 and tensor.device != devices[name]:
            groups.setdefault((tensor.device, devices[name], tensor.dtype), []).append(name)
        else:
            moved[name] = tensor.to(devices[name])
    for (_, device, _), names in groups.items():
        scalars = torch.stack([tensors[name] for name in names]).to(device)
        moved.update(zip(names, scalars.unbind(), strict=True))
    return moved


def _largest(tensors: list[Tensor]) -> list[Tensor]:
    """Largest magnitudes, NaN where there is one."""
    norms = list(tensors)
    for places in _by_device(tensors).values():
        group = torch._foreach_norm([tensors[i] for i in places], torch.inf)
        for i, norm in zip(places, group, strict=True):
            norms[i] = norm
    return norms


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    places: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(i)
    return places
