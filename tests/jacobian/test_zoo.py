"""Real architectures against the dense Jacobian, in float64, parameter by parameter."""

from __future__ import annotations

import pytest
from zoo import ZOO, Architecture

from tpv.testing import assert_unchanged, check_model

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("architecture", ZOO, ids=[a.name for a in ZOO])
def test_every_parameter_agrees_with_the_dense_jacobian(
    architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    with architecture.context():
        model, batch = architecture.model(), architecture.batch()
        with assert_unchanged(model):
            check = check_model(model, batch, forward=architecture.forward)
    assert check.error < 1e-9
    assert check.cotangents == check.outputs
    assert str(check) in capsys.readouterr().out
