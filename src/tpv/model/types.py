"""Layer types of other libraries by name, so that the core imports none of them."""

from __future__ import annotations

from torch import nn

TRANSPOSED_LINEAR = "transformers.pytorch_utils.Conv1D"
"""The linear layer of GPT-2, with its weight (in, out)."""


def type_name(module: nn.Module) -> str:
    """'torch.nn.modules.linear.Linear'."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
