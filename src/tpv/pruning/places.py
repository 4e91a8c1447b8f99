"""Where a model holds a parameter, in the words of torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpv._errors import TPVError, did_you_mean


def place(model: nn.Module, name: str, shape: torch.Size) -> list[tuple[nn.Module, str]]:
    """The modules that hold the parameter ``name``, with what they call it ("weight", also where pruning made
    it "weight_orig").

    Raises:
        TPVError: if the model has no such parameter, or one of another shape.
    """
    everywhere = dict(model.named_parameters(remove_duplicate=False))
    if name not in everywhere:
        raise TPVError(
            f"the model has no parameter {name!r}: give the model that was "
            f"scored.{did_you_mean(name, everywhere)}"
        )
    if everywhere[name].shape != shape:
        raise TPVError(
            f"{name!r} has shape {tuple(everywhere[name].shape)} in this model, and not {tuple(shape)}: give "
            "the model that was scored."
        )
    same = [other for other, parameter in everywhere.items() if parameter is everywhere[name]]
    return [_attribute(model, other) for other in same]


def _attribute(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    pruned = attribute.removesuffix("_orig")
    return module, pruned if f"{pruned}_mask" in dict(module.named_buffers(recurse=False)) else attribute


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Prune the model by masks, in place, with ``torch.nn.utils.prune.custom_from_mask``.

    Each parameter becomes ``<name>_orig`` with a buffer ``<name>_mask``; masks of earlier calls add up. A
    parameter that several modules share is pruned in all of them. ``torch.nn.utils.prune.remove`` makes it
    permanent.

    Args:
        model: changed in place, and returned.
        masks: parameter name → mask of its shape, 1 or True where a weight stays and 0 or False where it
            goes.

    Raises:
        TPVError: for a parameter that the model does not have or that has another shape; the model is as it
            was then.

    Example:
        >>> import torch
        >>> model = apply_masks(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> abs(model.weight[0, 1].item()), list(dict(model.named_buffers()))
        (0.0, ['weight_mask'])
    """
    from torch.nn.utils import prune

    places = [(owner, mask) for name, mask in masks.items() for owner in place(model, name, mask.shape)]
    for (module, attribute), mask in places:
        prune.custom_from_mask(module, attribute, mask.to(getattr(module, attribute).device))
    return model
