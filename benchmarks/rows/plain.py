"""The unit: one forward and backward pass, all weight gradients of a scalar loss."""

from __future__ import annotations

import torch

from benchmarks.row import Row, Run
from benchmarks.subject import Subject


def forward_backward(subject: Subject, batch: int) -> Run:
    parameters = list(subject.model.parameters())

    def run(seed: int) -> None:
        for x in subject.images.split(batch):
            torch.autograd.grad(subject.model(x).square().sum(), parameters)

    return run


ROW = Row("plain", "forward + backward", forward_backward, images=256, batches=(64, 16, 32, 128, 256))
