"""A Hugging Face network as a function from tensor to tensor, which is all that most libraries accept."""

from __future__ import annotations

from torch import Tensor, nn


class Logits(nn.Module):
    """The network's ``.logits``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits
