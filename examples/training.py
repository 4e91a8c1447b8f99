"""Shared by the examples that train their own network: the data folder, cached weights, a training loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def data_root(needed: str) -> Path:
    """``TPV_DATA_DIR``, or an error that names the data set to download."""
    root = os.environ.get("TPV_DATA_DIR")
    if not root:
        raise SystemExit(
            f"TPV_DATA_DIR is not set: download the data set {needed} from the Hugging Face hub into a "
            "folder and set TPV_DATA_DIR to it."
        )
    return Path(root)


def cache_folder(name: str) -> Path:
    """The folder where an example caches its weights: in ``TPV_CACHE_DIR``, by default ~/.cache/tpv."""
    folder = Path(os.environ.get("TPV_CACHE_DIR", Path.home() / ".cache" / "tpv")) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trained(name: str, kind: type[PreTrainedModel], train: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The network in evaluation mode, trained with seed 0 at first use and read from the cache
    afterwards.
    """
    folder = cache_folder(name)
    if not (folder / "model.safetensors").is_file():
        print(f"Training {name}, once; the weights are cached in {folder}", file=sys.stderr)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            train().save_pretrained(folder)
    return kind.from_pretrained(folder, use_safetensors=True).eval()


def fit(
    network: PreTrainedModel,
    loss: Callable[[Tensor], Tensor],
    examples: int,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
) -> PreTrainedModel:
    """The network after AdamW with warm-up and cosine decay; ``loss`` takes the indices of a random batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, epochs=epochs, steps_per_epoch=-(-examples // batch_size), pct_start=0.1
    )
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for indices in torch.randperm(examples).split(batch_size):
            optimizer.zero_grad()
            value = loss(indices)
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += value.item() * len(indices)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / examples:.3f}", file=sys.stderr)
    return network.eval()
