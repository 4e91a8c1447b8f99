"""A fixed displacement: towards another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean
from tpv.common.options import require_mapping
from tpv.common.warn import warn
from tpv.model.weights import Patterns, Weights
from tpv.perturbations.base import Perturbation
from tpv.perturbations.bound import Displacements


@dataclass(frozen=True, eq=False, repr=False)
class Displacement(Perturbation):
    """δ = w' − w* towards another checkpoint of the same model, for example a quantized or pruned one.

    Args:
        state_dict: the other checkpoint, with every parameter that moves. Buffers and frozen
            parameters in it are not applied; there is a warning where they differ from the model's.
        params: glob patterns of the parameters that move, or a function ``(name, weight) -> bool``.

    Raises:
        TPVError: when it is bound to a model, if a parameter is missing or has another shape.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> other = {"weight": model.weight.detach() + 1}
        >>> round(tpv.estimate(model, torch.ones(1, 3).double(), tpv.Displacement(other)).value, 6)  # 2 × 3²
        18.0
    """

    state_dict: Mapping[str, Tensor] = field(repr=False)
    params: Patterns = None
    deterministic = True

    def __post_init__(self) -> None:
        require_mapping("Displacement", "state_dict", self.state_dict, "other_model.state_dict()")

    def sample(self, weights: Weights, generator: torch.Generator) -> Displacements:
        """δ, the same for every generator."""
        for name, w in weights.items():
            if name not in self.state_dict:
                hint = did_you_mean(name, self.state_dict)
                raise TPVError(
                    f"the state_dict of Displacement has no {name!r}: give it, or leave it out with "
                    f"params=.{hint}"
                )
            if (shape := self.state_dict[name].shape) != w.shape:
                raise TPVError(
                    f"the state_dict of Displacement gives {name!r} the shape {tuple(shape)}; the model has "
                    f"{tuple(w.shape)}."
                )
        self._warn_about_fixed(weights)
        return {name: self.state_dict[name].to(w) - w for name, w in weights.items()}

    def _warn_about_fixed(self, weights: Weights) -> None:
        differing = [
            name
            for name, value in weights.fixed.items()
            if name in self.state_dict and not torch.equal(self.state_dict[name].to(value), value)
        ]
        if differing:
            warn(
                f"Displacement moves trainable parameters only, and {len(differing)} buffers or frozen "
                "parameters of the state_dict differ "
                f"from the model's (first: {differing[0]!r}): w* + δ is not that checkpoint."
            )
