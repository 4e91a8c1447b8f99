"""BackPACK: quantities beside the gradient, from one extended backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.row import Answer, Convergence, Row, Run
from benchmarks.subjects import Subject

RESNET = "CifarResNet"


def diagonal_exact(subject: Subject, batch: int) -> Run:
    from backpack.extensions import DiagGGNExact

    return gauss_newton_diagonal(subject, batch, DiagGGNExact())


def diagonal_sampled(subject: Subject, batch: int) -> Run:
    from backpack.extensions import DiagGGNMC

    return gauss_newton_diagonal(subject, batch, DiagGGNMC(mc_samples=1))


def gauss_newton_diagonal(subject: Subject, batch: int, extension: Any) -> Run:
    """The diagonal of 2 Σ_n J_nᵀJ_n, the Gauss-Newton matrix of the summed squared error."""
    from backpack import backpack, extend

    model, loss = extend(as_modules(subject)), extend(nn.MSELoss(reduction="sum"))

    def run(seed: int) -> Answer:
        torch.manual_seed(seed)
        total = 0.0
        for x in subject.inputs.split(batch):
            with backpack(extension):
                loss(model(x), subject.zeros(len(x)).flatten(1)).backward()
            total += sum(getattr(p, extension.savefield).sum().item() for p in model.parameters())
        return Answer(torch.tensor([total / (2 * len(subject.inputs))]))

    return run


def squared_gradients(subject: Subject, batch: int) -> Run:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model = extend(copy.deepcopy(subject.model))

    def squares(x: Tensor, v: Tensor) -> Tensor:
        with backpack(BatchL2Grad()):
            (model(x) * v).sum().backward()
        missing = [name for name, p in model.named_parameters() if not hasattr(p, "batch_l2")]
        if missing:
            raise NotImplementedError(f"no batch_l2 for {len(missing)} parameters, among them {missing[0]}")
        return torch.stack([p.batch_l2 for p in model.parameters()]).double().sum(0).cpu()

    def run(seed: int) -> Answer:
        chunks = zip(subject.inputs.split(batch), subject.signs(seed).split(batch), strict=True)
        return Answer(torch.cat([squares(x, v) for x, v in chunks]))

    return run


def as_modules(subject: Subject) -> nn.Module:
    """A copy; ResNet-20 as modules only, which second-order extensions require."""
    if type(subject.model).__name__ != RESNET:
        return subject.flat()
    network: Any = copy.deepcopy(subject.model)
    blocks = [*network.layer1, *network.layer2, *network.layer3]
    stem = [network.conv1, network.bn1, nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.linear]
    return nn.Sequential(*stem, *[m for block in blocks for m in residual(block)], *head).eval()


def residual(block: Any) -> Iterator[nn.Module]:
    from backpack.custom_module.branching import Parallel
    from backpack.custom_module.pad import Pad
    from backpack.custom_module.slicing import Slicing

    every, step, p = slice(None), slice(None, None, block.stride), block.padding
    main = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
    strided = nn.Sequential(Slicing((every, every, step, step)), Pad((0, 0, 0, 0, p, p)))
    yield Parallel(main, nn.Identity() if block.stride == 1 else strided)
    yield nn.ReLU()


REWRITTEN = (
    "it supports only networks made of modules that it knows: ResNet-20 is rewritten accordingly; LayerNorm "
    "and attention are not supported"
)
ROWS = tuple(
    Row(
        "BackPACK",
        method,
        prepare,
        convergence,
        64,
        calls,
        batches,
        "--no-deps backpack-for-pytorch einops unfoldNd",
        note,
        every,
    )
    for method, prepare, convergence, calls, batches, note, every in (
        ("DiagGGNExact", diagonal_exact, Convergence.EXACT, 3, (8, 16, 32), REWRITTEN, True),
        ("DiagGGNMC(1)", diagonal_sampled, Convergence.EXAMPLES, 12, (16, 32, 64), REWRITTEN, False),
        ("BatchL2Grad, one probe", squared_gradients, Convergence.EXAMPLES, 3, (16, 32, 64), "", False),
    )
)
