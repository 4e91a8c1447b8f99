"""What is measured: a ResNet-20 and its images."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

_EXAMPLE = Path(__file__).parent.parent / "examples" / "cifar10_resnet20.py"


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, images (N, 3, 32, 32), and what they are in words."""

    model: nn.Module
    images: Tensor
    description: str

    def narrowed(self, n: int) -> Subject:
        """The same network on the first n images."""
        return Subject(self.model, self.images[:n], self.description)

    @property
    def outputs(self) -> int:
        return 10


def build(n: int) -> Subject:
    """Trained weights and CIFAR-10 test images under ``TPV_DATA_DIR``, else random ones."""
    example = _example()
    if os.environ.get("TPV_DATA_DIR"):
        return Subject(example.model(), example.images(f"test[:{n}]"), "ResNet-20 trained on CIFAR-10, test images")
    torch.manual_seed(0)
    return Subject(
        example.CifarResNet(20).eval(),
        torch.randn(n, 3, 32, 32),
        "ResNet-20 and images both random (TPV_DATA_DIR is not set): values mean nothing, costs do",
    )


def save(subject: Subject, path: Path) -> None:
    torch.save((subject.model.state_dict(), subject.images, subject.description), path)


def load(path: Path, n: int) -> Subject:
    """What ``save`` wrote, with the first n images."""
    state, images, description = torch.load(path)
    model = _example().CifarResNet(20)
    model.load_state_dict(state)
    return Subject(model.eval(), images[:n].clone(), description)


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar10_resnet20", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
