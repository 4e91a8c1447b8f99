"""Twins of real architectures: outputs and gradients bit for bit, the original untouched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Architecture

from tpv.model.batches import call_model, tensors
from tpv.model.process_state import eager
from tpv.model.twin import twin_of
from tpv.model.watch import watch_of
from tpv.testing import assert_unchanged

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("architecture", ZOO, ids=[a.name for a in ZOO])
def test_outputs_and_gradients_are_those_of_the_model(architecture: Architecture) -> None:
    with architecture.context():
        model, batch = architecture.model(), architecture.batch()
        forward = architecture.forward or call_model
        with assert_unchanged(model), eager(), twin_of(model, forward) as (twin, remapped):
            with watch_of(twin).forward() as check_graph:
                outputs = next(floating(remapped(twin, batch)))
            check_graph(outputs)
            gradients = gradients_of(twin, outputs)
            names = [name for name, _ in twin.named_parameters()]
            on_same_memory = all(
                p.data_ptr() == q.data_ptr()
                for p, q in zip(twin.parameters(), model.parameters(), strict=True)
                if p.requires_grad
            )
        with eager():
            expected = next(floating(forward(model, batch)))
        assert names == [name for name, _ in model.named_parameters()]
        assert on_same_memory
        assert torch.equal(outputs, expected)
        for mine, theirs in zip(gradients, gradients_of(model, expected), strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def floating(outputs: Any) -> Iterator[Tensor]:
    return (t for t in tensors(outputs) if t.is_floating_point())


def gradients_of(model: nn.Module, outputs: Tensor) -> tuple[Tensor | None, ...]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    return torch.autograd.grad(outputs, parameters, cotangent, allow_unused=True)
