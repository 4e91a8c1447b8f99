"""New statistics of BatchNorm: those of the inputs, or the old ones."""

import pytest
import torch
from cases import randn
from torch import nn

from tpv import TPVError
from tpv.pruning import recalibrate
from tpv.testing import assert_unchanged


class Broken:
    """A loader that fails after a batch."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield randn(8, 2).float()
        raise self.error


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(3)
    ).eval()
    for norm in (model[1], model[4]):
        norm.running_mean.fill_(5)
        norm.running_var.fill_(7)
    return model


def test_statistics_are_those_of_the_inputs_in_evaluation_mode():
    model, x = normed(), randn(64, 2).float()
    with torch.no_grad():
        hidden = model[0](x)
        recalibrate(model, [x[:32], x[32:]])
    mean = torch.stack([hidden[:32].mean(0), hidden[32:].mean(0)]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert model[4].running_mean.min() >= 0, "dropout and ReLU come before"
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, TPVError),
        ([], TPVError),
        (iter([]), TPVError),
        (Broken(OSError("disk")), OSError),
        (Broken(KeyboardInterrupt()), KeyboardInterrupt),
        ([torch.randn(8, 5)], RuntimeError),
    ],
    ids=["none", "empty", "iterator", "disk", "interrupt", "shape"],
)
def test_nothing_is_lost_where_the_data_fails(data, error):
    model = normed()
    with assert_unchanged(model), pytest.raises(error):
        recalibrate(model, data)
    assert (model[1].running_mean == 5).all()
