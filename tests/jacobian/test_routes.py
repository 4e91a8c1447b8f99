"""Which route each parameter takes, and why: planned, proven in squares and in gradients, demoted with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, randn, settled
from torch import Tensor, nn

import tpv
from tpv.jacobian import RouteTable, Sweep
from tpv.jacobian.formulas.linear import LinearCall
from tpv.jacobian.routes.table import Demotion, Kind, Route
from tpv.model.linearization import Linearization
from tpv.testing import dense_jacobian


def sweep_of(model: nn.Module) -> Sweep:
    lin = Linearization(model)
    ones = torch.ones(()).double()
    return Sweep(lin, {name: lin.weights.without_padding(name, ones) for name in lin.weights})


def squares_of(sweep: Sweep, batch: Any) -> dict[str, Tensor]:
    with sweep.linearized(batch) as (z, squares):
        columns = squares(torch.ones_like(z).flatten(1))
    return dict(zip(sweep.names, columns.unbind(1), strict=True))


def gradients_of(sweep: Sweep, batch: Any) -> dict[str, Tensor]:
    with sweep.jacobian(batch) as (z, gradients):
        return gradients(torch.ones_like(z).flatten(1), sweep.names)


def assert_right(sweep: Sweep, model: nn.Module, batch: Any) -> None:
    """Squares and gradients of the sum of the outputs against the dense Jacobian."""
    squares, gradients = squares_of(sweep, batch), gradients_of(sweep, batch)
    for name, j in dense_jacobian(model, batch).items():
        expected = j.sum(1)
        unpadded = sweep.lin.weights.without_padding(name, gradients[name])
        torch.testing.assert_close(unpadded, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(squares[name], expected.square().flatten(1).sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_squares_and_gradients_of_one_sweep_agree(case: Any) -> None:
    model = case.model()
    sweep = sweep_of(model)
    assert_right(sweep, model, case.batch())
    assert set(sweep.table.slow) == set(case.slow)
    assert all(route.reason for route in sweep.table.slow.values())
    assert not any(sweep.table.routes[name].reason for name in set(sweep.names) - set(case.slow))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "functional use",
            [
                "per-example gradients of the whole model: scale (registered on the model itself and not on one of its layers)",
                "per-example gradients of the whole model: layer.weight (used outside the calls of its layer)",
                "Linear: layer.bias and 2 more",
            ],
        ),
        (
            "hooked",
            [
                "local gradients of layer: layer.weight and 1 more (Linear has a forward hook)",
                "Linear: head.weight and 1 more",
            ],
        ),
        (
            "data dependent",
            [
                "per-example gradients of the whole model, one by one: weight (registered on the model itself and not on one of its layers; torch.func cannot trace the model)",
                "Linear: head.weight and 1 more",
            ],
        ),
        ("recurrent", ["local gradients of rnn: rnn.weight_ih_l0 and 3 more (LSTM has no analytic formula)"]),
    ],
)
def test_the_table_prints_every_kind_of_route_with_its_reason(name: str, lines: list[str]) -> None:
    case = next(case for case in CASES if case.name == name)
    sweep = sweep_of(case.model())
    squares_of(sweep, case.batch())
    assert str(sweep.table).splitlines() == lines


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def transposed(original: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Of the right size in the wrong places."""

    def wrong(self: LinearCall, g: Tensor, names: Any) -> dict[str, Tensor]:
        right = original(self, g, names)
        return {
            k: d.transpose(1, 2) if d.ndim == 3 and d.shape[1] == d.shape[2] else d for k, d in right.items()
        }

    return wrong


def test_a_formula_with_wrong_gradients_is_demoted_though_its_squares_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LinearCall, "gradients", transposed(LinearCall.gradients))
    model, x = small(), randn(4, 3)
    sweep = sweep_of(model)
    squares_of(sweep, x)
    assert not sweep.table.slow
    assert_right(sweep, model, x)
    assert set(sweep.table.slow) == {"0.weight"}
    assert sweep.table.routes["0.weight"].reason == "differs from single-example gradients"
    assert tpv.NTK(model, x, center=False).matrix.isfinite().all()


@pytest.mark.parametrize("wanted", [squares_of, gradients_of])
def test_rows_in_another_order_are_demoted_on_a_later_batch(wanted: Callable[..., dict[str, Tensor]]) -> None:
    class Sorted(nn.Module):
        """The layer sees the rows of long batches in another order."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0].argsort() if len(x) > 2 else torch.arange(len(x))
            return self.head(torch.tanh(self.layer(x[order]))[order.argsort()])

    torch.manual_seed(0)
    model, x = Sorted().double(), torch.tensor([[0.0, 1, 2], [5, 1, 0], [-3, 2, 2], [7, 0, 1]]).double()
    sweep = sweep_of(model)
    wanted(sweep, x[:2])
    before = sweep.table
    assert not before.slow
    wanted(sweep, x)
    assert set(sweep.table.slow) == {"layer.weight", "layer.bias"}
    assert sweep.table.routes["layer.bias"] == Route(
        Kind.WHOLE_MODEL, reason="the rows of its layer do not belong to the examples in order"
    )
    assert not before.slow
    assert_right(sweep, model, x)


def test_an_input_modified_in_place_on_a_later_batch_is_demoted() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = x.clone()
            y = torch.cat([self.layer(row) for row in h.split(len(h))])
            if len(x) > 2:
                h.mul_(2)
            return y

    torch.manual_seed(0)
    model = Overwriting().double()
    sweep = sweep_of(model)
    squares_of(sweep, randn(2, 3))
    assert not sweep.table.slow
    assert_right(sweep, model, randn(4, 3))
    assert sweep.table.routes["layer.weight"].reason == "an input of its layer is modified in place"


@pytest.mark.parametrize("wanted", [squares_of, gradients_of])
def test_a_module_that_computes_something_else_when_it_runs_again_is_demoted(
    wanted: Callable[..., dict[str, Tensor]],
) -> None:
    class Counting(nn.Module):
        """Multiplies by a factor that it reads from outside of itself."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * (factor["now"] if x[0, 0] > 10 else 1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Counting(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            factor["now"] = 2.0
            try:
                return self.head(torch.tanh(self.inner(x) / 20))
            finally:
                factor["now"] = 1.0

    factor = {"now": 1.0}
    torch.manual_seed(0)
    model, x = Outer().double(), randn(4, 3)
    sweep = sweep_of(model)
    wanted(sweep, x)
    assert sweep.table.routes["inner.scale"].kind is Kind.LOCAL
    x = x + 20
    wanted(sweep, x)
    route = sweep.table.routes["inner.scale"]
    assert route.kind is Kind.ONE_BY_ONE
    assert route.reason.startswith("its module computes something else when it runs again by itself; ")
    assert_right(sweep, model, x)


def test_a_single_example_through_batchnorm_has_right_squares_and_gradients() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                torch.tanh(self.norm(self.conv(x)).flatten(2).transpose(1, 2).contiguous())
            ).flatten(1)

    torch.manual_seed(0)
    model, x = settled(Patches()), randn(5, 2, 4, 4)
    together, single = sweep_of(model), sweep_of(model)
    for of in (squares_of, gradients_of):
        all_five, alone = of(together, x), of(single, x[:1])
        for name in together.names:
            torch.testing.assert_close(alone[name], all_five[name][:1], rtol=1e-9, atol=1e-12)


def test_a_table_is_a_value() -> None:
    linear = nn.Linear(2, 2)
    table = RouteTable(
        {"a": Route(Kind.FORMULA, (linear,), "Linear"), "b": Route(Kind.FORMULA, (linear,), "Linear")}
    )
    demotion = Demotion("b", "rows are out of order")
    after = table.demoted([demotion])
    assert str(table) == "Linear: a and 1 more"
    assert str(after) == "Linear: a\nper-example gradients of the whole model: b (rows are out of order)"
    assert (after.demotions, after.modules, list(after.slow)) == ((demotion,), [linear], ["b"])
    assert table == RouteTable(table.routes)
    with pytest.raises(AttributeError):
        table.examples = 2  # type: ignore[misc]
