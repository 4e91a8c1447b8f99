"""The measured network in evaluation mode and its inputs."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


class Spec(ABC):
    """A recipe for a network and its inputs.

    Attributes:
        name: its name for ``--subject``.
        description: in words, including what is random.
        share: the cost of an example relative to one of ResNet-20; rows use that many times fewer.
    """

    name: str
    description: str
    share: int = 1

    @abstractmethod
    def network(self) -> nn.Module:
        """Maps inputs (N, ...) to a tensor of outputs (N, ...), always with the same weights."""

    @abstractmethod
    def inputs(self, n: int) -> Tensor:
        """The first n examples."""

    @abstractmethod
    def small(self) -> Spec:
        """The same network, small enough for smoke runs."""


@dataclass(frozen=True)
class Subject:
    """A network and examples on one device; ``shape`` is that of one example's outputs."""

    model: nn.Module
    inputs: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> Subject:
        """Determine the shape of the outputs."""
        with torch.no_grad():
            return cls(model, inputs, model(inputs[:1]).shape[1:])

    @property
    def outputs(self) -> int:
        """K, the number of outputs of an example."""
        return self.shape.numel()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def narrowed(self, n: int) -> Subject:
        """The same network on the first n examples."""
        return Subject(self.model, self.inputs[:n], self.shape)

    def flat(self) -> nn.Module:
        """A copy of the network with outputs (N, K), for libraries that support no others."""
        return nn.Sequential(copy.deepcopy(self.model), nn.Flatten()).eval()

    def zeros(self, n: int) -> Tensor:
        """(n, ...) targets for a squared error."""
        return torch.zeros(n, *self.shape, device=self.inputs.device)

    def signs(self, seed: int) -> Tensor:
        """(N, ...) random cotangents of ±1, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (len(self.inputs), *self.shape), generator=generator, dtype=torch.int8)
        return signs.to(self.inputs.device).float() * 2 - 1


def save(spec: Spec, n: int, path: Path) -> None:
    """Weights and n examples, for other processes to load."""
    torch.save((spec.network().state_dict(), spec.inputs(n)), path)


def load(spec: Spec, path: Path, n: int, device: str) -> Subject:
    """Read what ``save`` wrote, with the first n examples."""
    weights, inputs = torch.load(path)
    model = spec.network()
    model.load_state_dict(weights)
    return Subject.of(model.to(device).eval(), inputs[:n].clone().to(device))
