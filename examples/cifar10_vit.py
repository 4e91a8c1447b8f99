"""A target for ``tpv report``: a small vision transformer on CIFAR-10.

    TPV_DATA_DIR=... tpv report examples/cifar10_vit.py

``TPV_DATA_DIR`` is a folder laid out as on the Hugging Face hub. It must hold ``uoft-cs/cifar10``, or the
same images as JPEG in ``cifar10-jpeg``, which is preferred. The first use trains the network (15 minutes of
CPU time) and caches it in ``TPV_CACHE_DIR``, by default ~/.cache/tpv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from cifar10_resnet20 import normalized, pixels
from torch import Tensor
from training import data_root, fit, trained

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ViTForImageClassification

title = "a small vision transformer on CIFAR-10"


def table(split: str, count: int | None = None) -> Dataset:
    """The first ``count`` images and labels of the split "train" or "test", or all."""
    from datasets import load_dataset

    root = data_root("uoft-cs/cifar10")
    folder = root / "cifar10-jpeg"
    images = load_dataset(str(folder if folder.is_dir() else root / "uoft-cs" / "cifar10"), split=split)
    return images.select(range(min(count or len(images), len(images))))


def augmented(x: Tensor) -> Tensor:
    """Every image shifted by up to four pixels, half of them mirrored."""
    images, channels, size = torch.arange(len(x)), torch.arange(x.shape[1]), torch.arange(x.shape[2])
    rows, columns = (torch.randint(9, (len(x), 1)) + size for _ in range(2))
    columns = torch.where(torch.rand(len(x), 1) < 0.5, columns.flip(1), columns)
    return F.pad(x, (4, 4, 4, 4))[
        images[:, None, None, None],
        channels[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def untrained(hidden: int = 128, layers: int = 6) -> ViTForImageClassification:
    """A vision transformer with 65 tokens: 8 × 8 patches of 4 × 4 pixels and the class."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
    }
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, num_labels=10, **sizes))


def train() -> ViTForImageClassification:
    """Four epochs on shifted and mirrored images."""
    data, network = table("train"), untrained()
    x, y = pixels(data), torch.tensor(data["label"])

    def loss(indices: Tensor) -> Tensor:
        return F.cross_entropy(network(normalized(augmented(x[indices]))).logits, y[indices])

    return fit(network, loss, len(x), epochs=4, batch_size=64, lr=1e-3)


def model() -> ViTForImageClassification:
    """The trained network in evaluation mode."""
    from transformers import ViTForImageClassification

    return trained("cifar10_vit", ViTForImageClassification, train)


def train_data() -> Tensor:
    """4,000 training images."""
    return normalized(pixels(table("train", 4000)))


def test_data() -> Tensor:
    """1,000 test images."""
    return normalized(pixels(table("test", 1000)))
