"""Padding rows of embeddings: out as inputs, as autograd has it, and in wherever their weight is used too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class PaddingRows:
    """Keeps what embeddings give for their ``padding_idx`` at its value, whatever weights replace theirs.

    PyTorch sends no gradient to that row, and forward mode and finite displacements would.
    """

    def __init__(self, model: nn.Module) -> None:
        self._hooks = [
            (module, _keep(module.padding_idx, module.weight.detach()[module.padding_idx]))
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Meanwhile these outputs do not move."""
        with ExitStack() as stack:
            for module, hook in self._hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            yield


def _keep(index: int, row: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.where((args[0] == index).unsqueeze(-1), row.to(output), output) if args else output

    return hook
