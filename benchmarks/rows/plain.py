"""The unit and the floor: plain backward passes, which compute all input gradients and the batch's weight
gradients.
"""

from __future__ import annotations

import torch

from benchmarks.row import Row, Run
from benchmarks.subjects import Subject


def forward_backward(subject: Subject, batch: int) -> Run:
    def run(seed: int) -> None:
        for x in subject.inputs.split(batch):
            torch.autograd.grad(subject.model(x).square().sum(), subject.parameters)

    return run


def every_cotangent(subject: Subject, batch: int) -> Run:
    def run(seed: int) -> None:
        for x in subject.inputs.split(batch):
            outputs = subject.model(x).flatten(1)
            for k in range(subject.outputs):
                v = torch.zeros_like(outputs)
                v[:, k] = 1
                torch.autograd.grad(outputs, subject.parameters, v, retain_graph=True)

    return run


UNIT = Row(
    "plain",
    "forward + backward",
    forward_backward,
    examples=256,
    batches=(16, 32, 64, 128, 256),
    note="also the floor of one cotangent",
)
FLOOR = Row(
    "plain",
    "forward + K backward",
    every_cotangent,
    examples=128,
    batches=(16, 32, 64),
    note="the floor of K cotangents: for each, the input gradients and the batch's weight gradients, nothing "
    "squared",
    every_output=True,
)
