"""A target that needs no files: a small convolutional network on scikit-learn's handwritten digits.

``tpv demo`` reports on it; as your own target would, it defines ``model``, ``train_data`` and
``test_data``.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpv.common.errors import TPVError

title = "a small convolutional network on handwritten digits"
_TRAIN, _EPOCHS, _BATCH = 1297, 12, 64


def model() -> nn.Module:
    """The network after a few seconds of training, in evaluation mode; the same at every call."""
    x, y = digits("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(_TRAIN).split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(network(x[batch]), y[batch]).backward()
                optimizer.step()
            schedule.step()
    return network.eval()


def train_data() -> Tensor:
    """1,297 images (N, 1, 8, 8) that the network saw."""
    return digits("train")[0]


def test_data() -> list[tuple[Tensor, Tensor]]:
    """500 images that it did not see with their labels, in batches (images, labels)."""
    images, labels = digits("test")
    return list(zip(images.split(256), labels.split(256), strict=True))


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,) of the split "train" or "test"."""
    part = slice(_TRAIN) if split == "train" else slice(_TRAIN, None)
    images, labels = _digits()
    return images[part], labels[part]


def _network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels, in a fixed random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TPVError("the demo needs scikit-learn: pip install 'tpv[cli]'") from error
    dataset = load_digits()
    order = torch.randperm(len(dataset.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(dataset.images, dtype=torch.float32).unsqueeze(1)[order] / 16, torch.tensor(
        dataset.target
    )[order]
