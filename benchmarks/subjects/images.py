"""CIFAR-10 test images, or random ones where the data set is not available."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10_resnet20.py"


def available() -> bool:
    """Whether ``TPV_DATA_DIR`` is set."""
    return bool(os.environ.get("TPV_DATA_DIR"))


def words() -> str:
    return "CIFAR-10 test images" if available() else "random images (TPV_DATA_DIR is not set)"


def images(n: int) -> Tensor:
    """(n, 3, 32, 32)."""
    if available():
        return example().images(f"test[:{n}]")
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def example() -> ModuleType:
    """``examples/cifar10_resnet20.py``."""
    spec = importlib.util.spec_from_file_location("cifar10_resnet20", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
