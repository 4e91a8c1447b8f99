"""Removing weights: δ = −w where the mask is zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean
from tpv.common.options import require_mapping
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.base import Perturbation
from tpv.perturbations.bound import Displacements


@dataclass(frozen=True, eq=False, repr=False)
class Masking(Perturbation):
    """Pruning by masks: δ = (mask − 1) ⊙ w, so that w* + δ is the pruned model.

    Args:
        masks: parameter name → mask in the convention of ``torch.nn.utils.prune``: 1 or True keeps a
            weight, 0 or False removes it. A mask broadcasts to its parameter ((C, 1, 1, 1) removes whole
            channels). Parameters without a mask stay.
        params: glob patterns to restrict the masks to, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: when it is bound to a model, for an unknown name, a shape that does not broadcast, or values
            other than 0 and 1.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> result = tpv.estimate(model, torch.eye(3).double(), tpv.Masking({"weight": torch.zeros(2, 3)}))
        >>> abs(result.value - model.weight.square().sum().item() / 3) < 1e-12
        True
    """

    masks: Mapping[str, Tensor] = field(repr=False)
    params: Patterns = None
    deterministic = True

    def __post_init__(self) -> None:
        require_mapping("Masking", "masks", self.masks, "{'0.weight': mask}")

    def sample(self, weights: Weights, generator: torch.Generator) -> Displacements:
        """δ, the same for every generator."""
        delta = {}
        for name, mask in self.masks.items():
            if name not in weights:
                if name in weights.names and self.params is not None:
                    continue
                raise TPVError(
                    f"Masking has a mask for {name!r}, which is not a trainable "
                    f"parameter.{did_you_mean(name, weights)}"
                )
            delta[name] = (_checked(name, mask, weights[name]) - 1) * weights[name]
        return delta


def _checked(name: str, mask: Tensor, w: Tensor) -> Tensor:
    try:
        mask = torch.as_tensor(mask).to(w).expand_as(w)
    except RuntimeError:
        raise TPVError(
            f"the mask of {name!r} has shape {tuple(mask.shape)}, which does not broadcast to "
            f"{tuple(w.shape)}."
        ) from None
    if not ((mask == 0) | (mask == 1)).all():
        raise TPVError(f"the mask of {name!r} has values other than 0 (remove) and 1 (keep).")
    return mask
