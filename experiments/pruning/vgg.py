"""A network without residuals: eight convolutions with BatchNorm, trained here on the JPEG images of
CIFAR-10.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from cifar10_resnet20 import normalized
from cifar10_vit import augmented
from torch import Tensor, nn
from training import cache_folder

from experiments.pruning.images import table

LAYOUT = (32, "pool", 32, 64, "pool", 64, 128, 128, "pool", 128, 128)
EPOCHS, BATCH, LR, MOMENTUM, DECAY = 16, 256, 0.2, 0.9, 5e-4


class VGG(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, three max-poolings, the mean over pixels, one linear
    layer.
    """

    def __init__(self, layout: tuple[int | str, ...] = LAYOUT, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in layout:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def train() -> VGG:
    """The network after SGD on shifted and mirrored images, in bfloat16 where that pays."""
    x, y = table("cifar10-jpeg", "train")
    network = VGG().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, epochs=EPOCHS, steps_per_epoch=steps, pct_start=0.25
    )
    for epoch in range(EPOCHS):
        total = 0.0
        for indices in torch.randperm(len(x)).split(BATCH):
            batch = normalized(augmented(x[indices])).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(batch)
            loss = F.cross_entropy(outputs.float(), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(indices)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(x):.3f}", file=sys.stderr, flush=True)
    return network.to(memory_format=torch.contiguous_format).eval()


def vgg() -> VGG:
    """The network in evaluation mode, trained with seed 0 at its first use and read from the cache
    afterwards.
    """
    from safetensors.torch import load_file, save_file

    file = cache_folder("cifar10_vgg") / "model.safetensors"
    if not file.is_file():
        print(f"Training a VGG, once; the weights are kept in {file.parent}", file=sys.stderr)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_file(train().state_dict(), file)
    network = VGG()
    network.load_state_dict(load_file(file))
    return network.eval()
