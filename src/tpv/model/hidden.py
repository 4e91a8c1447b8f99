"""Parameters that change the outputs although autograd does not see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.model.linearization import Linearization


@torch.no_grad()
def refuse_hidden_use(lin: Linearization, few: Any, outputs: Tensor, names: list[str]) -> None:
    """Refuse parameters that change the outputs although autograd does not see it.

    Raises:
        TPVError: naming them.
    """
    shifted = {name: lin.weights[name] + 0.1 * (lin.weights[name].abs() + 0.1) for name in names}
    if names and not torch.allclose(lin.at(shifted, few), outputs, rtol=1e-3, atol=1e-6):
        raise TPVError(
            f"the model uses {', '.join(names[:3])} under torch.no_grad() or detached, so that their "
            "effect has no gradient: "
            "freeze them with requires_grad_(False), or leave them out with params=."
        )
