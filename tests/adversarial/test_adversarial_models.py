"""Models whose later batches are not like the first: shapes, order of rows, call counts and attributes that depend on the data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tpv
from tpv.jacobian.fallback import whole_model
from tpv.jacobian.formulas.linear import LinearCall
from tpv.model.batches import batch_size
from tpv.testing import assert_unchanged, dense_tpv

NOISE = tpv.Isotropic(0.3)


def tokens(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 7, (n, length), generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A model from its parts and its forward function."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run
        self.double()

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def assert_exact(model: nn.Module, data: list[Any], perturbation: tpv.Perturbation = NOISE) -> tpv.TPVResult:
    sizes = [batch_size(batch) for batch in data]
    found = [dense_tpv(model, batch, perturbation) for batch in data]
    expected = {
        name: sum(n * f[name] for n, f in zip(sizes, found, strict=True)) / sum(sizes) for name in found[0]
    }
    for chunk in (None, 2):
        with assert_unchanged(model):
            result = tpv.estimate(model, data, perturbation, estimator=tpv.Exact(), chunk_size=chunk)
        assert result.value == pytest.approx(expected["total"], rel=1e-9)
        for name, layer in result.layers.items():
            assert layer.value == pytest.approx(expected[name], rel=1e-9, abs=1e-9 * expected["total"]), name
    return result


def positions(m: Any, ids: Tensor) -> Tensor:
    return m.head(torch.tanh(m.words(ids) + m.places(torch.arange(ids.shape[1])))).mean(1)


def embeddings() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"words": nn.Embedding(7, 4), "places": nn.Embedding(9, 4), "head": linear(4, 3)}


@pytest.mark.parametrize("lengths", [(5, 1, 5), (1, 5), (4, 4, 1, 3)])
def test_position_embeddings_of_batches_of_other_lengths(lengths: tuple[int, ...]) -> None:
    assert_exact(
        Model(positions, **embeddings()), [tokens(n, t) for n, t in zip((3, 4, 1, 4), lengths, strict=False)]
    )


def test_a_shared_call_that_changes_places_with_another() -> None:
    def run(m: Any, ids: Tensor) -> Tensor:
        place, word = torch.arange(ids.shape[1]), ids
        if ids.shape[1] == 3:
            w, p = m.words(word), m.words(place)
        else:
            p, w = m.words(place), m.words(word)
        return m.head(torch.tanh(w + p)).mean(1)

    assert_exact(Model(run, **embeddings()), [tokens(4, 5), tokens(3, 3), tokens(4, 4)])


def test_experts_that_get_as_many_rows_as_there_are_examples() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        rows = torch.tanh(m.first(x)).flatten(0, 1)
        expert, y = (x.flatten(0, 1)[:, 0] > 0).long(), torch.zeros_like(rows)
        for e, layer in enumerate(m.experts):
            chosen = (expert == e).nonzero()[:, 0]
            y = y.index_add(0, chosen, layer(rows[chosen]))
        return m.head(torch.tanh(y).unflatten(0, x.shape[:2]).mean(1))

    torch.manual_seed(0)
    model = Model(run, first=linear(), experts=nn.ModuleList([linear(), linear()]), head=linear(4, 3))
    first, second = randn(2, 2, 4), randn(4, 2, 4, seed=1)
    first[..., 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    second[..., 0] = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    assert_exact(model, [first, second])


def test_rows_that_the_first_output_does_not_reach() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        mixed = m.second(torch.tanh(m.shared(x))[order])[order.argsort()]
        return torch.cat([m.first(x)[:, :1], mixed], 1)

    torch.manual_seed(0)
    x = torch.cat([randn(1, 4) - 9, randn(5, 4, seed=2), randn(1, 4) + 9])
    assert_exact(Model(run, first=linear(), shared=linear(), second=linear(4, 2)), [x[[0, 6]], x[:6], x])


def test_many_single_examples_first() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.tanh(x + m.places(torch.zeros(1, dtype=torch.long))[0]))

    torch.manual_seed(0)
    assert_exact(
        Model(run, places=nn.Embedding(2, 4), head=linear(4, 3)),
        [*randn(10, 4).split(1), randn(5, 4, seed=1)],
    )


def test_an_attribute_that_another_module_sets() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        return torch.tanh(x * m.scale) * (m.keep if m.keep is not None else 1.0)

    def run(m: Any, x: Tensor, keep: Tensor) -> Tensor:
        if not keep.all():
            m.block.keep = keep.unsqueeze(1)
        return m.head(m.block(m.first(x)))

    torch.manual_seed(0)
    inner = Model(block, scale=nn.Parameter(torch.ones(4)))
    inner.keep = None
    model = Model(run, first=linear(), block=inner, head=linear(4, 3))
    masks = [torch.ones(3), torch.tensor([1.0, 0.5, 1.0, 0.25])]
    data = [(randn(3, 4), masks[0].double()), (randn(4, 4, seed=1), masks[1].double())]

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)

    expected = [dense_tpv(model, batch, NOISE, forward) for batch in data]
    found = tpv.estimate(model, data, NOISE, estimator=tpv.Exact(), forward=forward)
    for name, layer in found.layers.items():
        assert layer.value == pytest.approx((3 * expected[0][name] + 4 * expected[1][name]) / 7, rel=1e-9), (
            name
        )


@pytest.mark.parametrize("how", ["hook", "forward"])
def test_a_layer_whose_outputs_are_changed_for_some_examples(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Tanh(), linear(4, 3)).double()
    if how == "hook":
        model[0].register_forward_hook(lambda module, args, output: output.clamp(-1, 1))
    else:
        model[0].forward = lambda x: F.linear(x, model[0].weight, model[0].bias).clamp(-1, 1)
    x = randn(6, 4)
    x[2:4] *= 30
    assert_exact(model, [x])


def test_a_side_channel_that_some_batches_use() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        m.kept = x * m.scale
        return torch.tanh(m.kept)

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.block(m.first(x))
        return m.head(y + m.block.kept if x.shape[1] > 2 else y).mean(1)

    torch.manual_seed(0)
    inner = Model(block, scale=nn.Parameter(torch.tensor([0.5, 1.5, -1.0, 2.0])))
    inner.kept = None
    assert_exact(
        Model(run, first=linear(), block=inner, head=linear(4, 3)), [randn(2, 2, 4), randn(5, 3, 4, seed=1)]
    )


def test_a_layer_called_total() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(total=linear(), last=linear(4, 3))).double()
    found = tpv.estimate(model, randn(5, 4), NOISE)
    assert found.value == pytest.approx(found.layers["total"].value + found.layers["last"].value, rel=1e-12)


class OnlyForX(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def test_a_function_without_a_gradient_for_one_argument() -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: m.head(OnlyForX.apply(m.first(x), m.second(x))),
        first=linear(),
        second=linear(),
        head=linear(4, 3),
    )
    assert tpv.estimate(model, randn(5, 4), NOISE).layers["second"].value == 0


def test_checkpointing_of_a_block_that_reads_attributes() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        return torch.tanh(m.layer(x)) * m.size

    def run(m: Any, x: Tensor) -> Tensor:
        m.block.size = x.shape[1]
        return m.head(checkpoint(m.block, x, use_reentrant=False))

    torch.manual_seed(0)
    inner = Model(block, layer=linear())
    inner.size = None
    assert_exact(Model(run, block=inner, head=linear(4, 3)), [randn(3, 4), randn(5, 4, seed=1)])


def test_state_of_every_kind_is_put_back() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.ordered.setdefault("bias", m.bias * 2)
        m.nested["a"].setdefault("bias", m.bias * 3)
        m.seen.add(len(x))
        m.table[: min(len(x), 2)] = x[:2].detach().sum()
        m.running.mul_(0.5)
        return torch.tanh(m.layer(x) + m.ordered["bias"] + m.nested["a"]["bias"])

    torch.manual_seed(0)
    model = Model(run, layer=linear(4, 3), bias=nn.Parameter(torch.ones(3)))
    model.ordered, model.nested, model.seen, model.table = (
        OrderedDict(),
        {"a": {}},
        set(),
        torch.zeros(2, dtype=torch.float64),
    )
    model.register_buffer("running", torch.ones(3))
    x = randn(5, 4)
    found = tpv.estimate(model, x, NOISE)
    assert found.layers["(model)"].value > 0
    assert (model.ordered, model.nested, model.seen, model.table.tolist()) == (
        OrderedDict(),
        {"a": {}},
        set(),
        [0.0, 0.0],
    )
    assert model.running.tolist() == [1.0] * 3


def test_a_saturated_softmax_sends_nothing_the_slow_way() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Tanh(), linear(4, 3)).double()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([90.0, 0.0, 0.0]))
    assert "slow_routes" not in tpv.estimate(model, randn(5, 4), NOISE, output="probabilities").metadata


def test_running_out_of_memory_is_not_taken_for_a_missing_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    original, failures = whole_model._gradients, [torch.OutOfMemoryError("CUDA out of memory.")]

    def failing(*args: Any) -> dict[str, Tensor]:
        if failures and len(args[-1]) > 2:
            raise failures.pop()
        return original(*args)

    monkeypatch.setattr(whole_model, "_gradients", failing)
    model = Model(lambda m, x: torch.tanh(x @ m.matrix), matrix=nn.Parameter(randn(4, 3)))
    with pytest.warns(UserWarning, match="out of memory"):
        found = tpv.estimate(model, randn(8, 4), NOISE)
    assert not failures
    reason = "registered on the model itself and not on one of its layers"
    assert found.metadata["slow_routes"] == {"matrix": f"per-example gradients of the whole model: {reason}"}


def test_group_wise_quantization_of_single_rows_needs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, perturbation = (
        nn.Sequential(linear(6, 8), nn.Tanh(), linear(8, 3)).double(),
        randn(5, 6),
        tpv.Quantization(4, "group", group_size=2),
    )
    expected = dense_tpv(model, x, perturbation)["total"]
    monkeypatch.setattr(LinearCall, "gradients", lambda *_: pytest.fail("a gradient was written out"))
    assert tpv.estimate(model, x, perturbation).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("layers", [{"a": "*", "b": "2.*"}, {"a": []}, "(zz"])
def test_groups_are_checked_whatever_the_estimator(layers: Any) -> None:
    model = nn.Sequential(linear(), nn.Tanh(), linear())
    with pytest.raises(tpv.TPVError, match="layers"):
        tpv.estimate(model, torch.ones(3, 4), NOISE, estimator=tpv.MonteCarlo(2), layers=layers)
