"""How do I make my network half as expensive, and keep its accuracy?

    python examples/prune_and_finetune.py digits
    TPV_DATA_DIR=... python examples/prune_and_finetune.py cifar10

Prune → fine-tune with plain PyTorch → save → load, on scikit-learn's digits (a minute) or ResNet-20 on
CIFAR-10 (the 4,000 training images of ``uoft-cs/cifar10`` in ``TPV_DATA_DIR``). Pruning needs no labels;
fine-tuning is an ordinary training loop.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import cifar10_resnet20
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tpv
import tpv.demo
import tpv.pruning


@dataclass
class Task:
    """A trained network, and labelled data to fine-tune and to test it on."""

    network: Callable[[], nn.Module]
    train: TensorDataset
    test: TensorDataset
    epochs: int
    lr: float
    augment: Callable[[Tensor], Tensor] = lambda x: x


def digits() -> Task:
    """The network of ``tpv demo``."""
    train, test = (TensorDataset(*tpv.demo.digits(split)) for split in ("train", "test"))
    return Task(tpv.demo.model, train, test, epochs=10, lr=0.02)


def cifar10() -> Task:
    """ResNet-20."""
    train, test = (TensorDataset(*cifar10_resnet20.labelled(split)) for split in ("train", "test"))
    return Task(cifar10_resnet20.model, train, test, epochs=10, lr=0.01, augment=flipped_and_shifted)


def flipped_and_shifted(x: Tensor) -> Tensor:
    """The usual augmentation: mirrored half of the time, shifted by up to four pixels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    padded = F.pad(x, (4, 4, 4, 4))
    shifts = torch.randint(9, (len(x), 2)).tolist()
    return torch.stack(
        [image[:, i : i + 32, j : j + 32] for image, (i, j) in zip(padded, shifts, strict=True)]
    )


def fine_tune(model: nn.Module, task: Task) -> None:
    """Plain PyTorch: SGD with a cosine schedule on the labels."""
    loader = DataLoader(task.train, batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], task.lr, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs * len(loader))
    model.train()
    for _ in range(task.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(task.augment(x)), y).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of right answers."""
    return sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(data, 250)) / len(data)


def main(task: Task, folder: str, target: str = "macs=0.5", calibration: int = 512) -> nn.Module:
    """Prune → fine-tune → save → load; the loaded network."""
    model = task.network()
    print(f"unpruned            {accuracy(model, task.test):.3f}")
    images = task.train.tensors[0][:calibration]
    result = tpv.prune(model, images, target, allocation="curves", compensate=True)
    last = result.steps[-1]
    shares = f"{last.macs_share:.0%} of the MACs, {last.params_share:.0%} of the parameters"
    print(f"pruned, re-fitted   {accuracy(result.model, task.test):.3f}   {shares}")
    fine_tune(result.model, task)
    print(f"fine-tuned          {accuracy(result.model, task.test):.3f}")
    result.save(folder)
    loaded = tpv.pruning.load(task.network(), folder)
    print(f"saved and loaded    {accuracy(loaded, task.test):.3f}")
    return loaded


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        main({"digits": digits, "cifar10": cifar10}[sys.argv[1]](), place)
