"""CIFAR-10 with its labels."""

from __future__ import annotations

import functools

import torch
from cifar10_resnet20 import data_root, pixels
from torch import Tensor


@functools.cache
def table(folder: str, split: str) -> tuple[Tensor, Tensor]:
    """Images in bytes (N, 3, 32, 32) and labels (N,) of the split "train" or "test" of a folder in
    ``TPV_DATA_DIR``.
    """
    from datasets import load_dataset

    images = load_dataset(str(data_root() / folder), split=split)
    return pixels(images), torch.tensor(images["label"])
