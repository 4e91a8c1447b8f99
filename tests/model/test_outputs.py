"""What of the predictions counts: forms of outputs, masks, probabilities and KL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import randn
from torch import Tensor, nn

import tpv
from tpv.testing import dense_jacobian, dense_tpv

NOISE = tpv.Isotropic(0.3)
X = randn(4, 6, 5)


class Shaped(nn.Module):
    """Class scores (N, T, K) of tokens, brought into another form."""

    def __init__(self, form: Any = lambda f: f) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.form = form
        self.double()

    def forward(self, x: Tensor, **_: Any) -> Any:
        return self.form(self.last(torch.tanh(self.first(x))))


SHAPES = {
    "(N, K)": lambda f: f[:, 0],
    "(N, T, K)": lambda f: f,
    "(N, K, H, W)": lambda f: f.transpose(1, 2).unflatten(2, (2, 3)),
}


def scores(form: str, f: Tensor) -> Tensor:
    """The class scores with the classes last."""
    return f if form != "(N, K, H, W)" else f.movedim(1, -1)


def by_hand(form: str, matrix: Any) -> float:
    """σ² Tr(E[Jᵀ M J]) with M a function of the probabilities, from the dense Jacobian of the logits."""
    model = Shaped(SHAPES[form])
    f = scores(form, model(X)).detach()
    jacobian = dense_jacobian(model, X)
    total = 0.0
    for j in jacobian.values():
        j = scores(
            form, j.reshape(len(X), *model(X).shape[1:], -1).movedim(-1, 0).flatten(0, 1)
        )  # (P·N, ..., K)
        j = j.reshape(-1, *f.shape)
        total += torch.einsum("p...k,...kl,p...l->", j, matrix(f.softmax(-1)), j).item()
    return NOISE.std**2 * total / len(X)


def fisher(p: Tensor) -> Tensor:
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize(
    ("output", "matrix"),
    [("kl", lambda p: fisher(p) / 2), ("probabilities", lambda p: fisher(p) @ fisher(p))],
)
def test_probabilities_and_kl_agree_with_the_dense_jacobian(form: str, output: str, matrix: Any) -> None:
    model = Shaped(SHAPES[form])
    result = tpv.estimate(model, X, NOISE, output=output, estimator=tpv.Exact())
    assert result.value == pytest.approx(by_hand(form, matrix), rel=1e-10)
    assert sum(e.value for e in result.layers.values()) == pytest.approx(result.value, rel=1e-10)
    assert result.metadata["output"] == output


@pytest.mark.parametrize("form", SHAPES)
def test_kl_of_a_small_displacement_is_the_finite_divergence(form: str) -> None:
    model = Shaped(SHAPES[form])
    moved = {name: p.detach() + 1e-4 * randn(*p.shape, seed=3) for name, p in model.named_parameters()}
    perturbation = tpv.Displacement(moved)
    p, q = (
        scores(form, f).log_softmax(-1) for f in (model(X), torch.func.functional_call(model, moved, (X,)))
    )
    expected = F.kl_div(q, p, log_target=True, reduction="sum").item() / len(X)
    finite = tpv.estimate(model, X, perturbation, output="kl", estimator=tpv.MonteCarlo())
    assert finite.value == pytest.approx(expected, rel=1e-8)
    assert tpv.estimate(model, X, perturbation, output="kl").value == pytest.approx(expected, rel=1e-3)
    line = tpv.linearity(model, X, perturbation, output="kl")
    assert line.value < 1e-6
    assert line.ratio == pytest.approx(1, rel=1e-3)
    assert "nats" in str(finite)


def test_linearity_in_kl_grows_with_the_displacement() -> None:
    small, large = (tpv.linearity(Shaped(), X, tpv.Isotropic(std), output="kl").value for std in (0.01, 0.5))
    assert small < 0.01 < 0.05 < large


def test_the_kl_probes_average_to_the_exact_value() -> None:
    model, x = Shaped(SHAPES["(N, K)"]), randn(400, 6, 5)
    exact = tpv.estimate(model, x, NOISE, output="kl", estimator=tpv.Exact()).value
    drawn = tpv.estimate(model, x, NOISE, output="kl", estimator=tpv.Hutchinson(1))
    assert abs(drawn.value - exact) < 4 * drawn.mc_stderr


@pytest.mark.parametrize(
    "form",
    [
        lambda f: (f, f.sum()),
        lambda f: [f, f.sum()],
        lambda f: {"logits": f, "hidden": 2 * f},
        lambda f: {"only": f},
        lambda f: {"out": f, "aux": 2 * f},
        lambda f: SimpleNamespace(logits=f),
    ],
    ids=["tuple", "list", "logits", "only", "out", "attribute"],
)
def test_outputs_are_found_in_what_a_model_returns(form: Any) -> None:
    plain = tpv.estimate(Shaped(), X, NOISE)
    assert tpv.estimate(Shaped(form), X, NOISE).value == pytest.approx(plain.value, rel=1e-12)


def test_scalars_and_a_function_of_what_is_returned() -> None:
    scalar = Shaped(lambda f: f.sum((1, 2)))
    assert tpv.estimate(scalar, X, NOISE).value == pytest.approx(
        dense_tpv(scalar, X, NOISE)["total"], rel=1e-10
    )
    both = Shaped(lambda f: {"a": f.sum((1, 2)), "b": 2 * f})

    def chosen(returned: dict[str, Tensor]) -> Tensor:
        return returned["a"]

    result = tpv.estimate(both, X, NOISE, output=chosen)
    assert result.value == pytest.approx(tpv.estimate(scalar, X, NOISE).value, rel=1e-12)
    assert "chosen" in result.metadata["output"]


def test_padded_positions_do_not_count() -> None:
    model, lengths = Shaped(), [6, 2, 4, 1]
    mask = torch.tensor([[int(t < n) for t in range(6)] for n in lengths])
    padded = [{"x": X, "attention_mask": mask}]
    alone = [{"x": x[None, :n]} for x, n in zip(X, lengths, strict=True)]
    for settings in (
        {"estimator": tpv.Exact()},
        {"estimator": tpv.Exact(), "output": "kl"},
        {"estimator": tpv.MonteCarlo(3), "output": "kl"},
    ):
        assert tpv.estimate(model, padded, NOISE, **settings).value == pytest.approx(
            tpv.estimate(model, alone, NOISE, **settings).value, rel=1e-10
        )
    line, reference = (tpv.linearity(model, data, tpv.Isotropic(0.2)) for data in (padded, alone))
    assert line.value == pytest.approx(reference.value, rel=1e-8)


def test_decoder_inputs_are_masked_by_their_own_mask() -> None:
    model = Shaped()
    encoder = torch.tensor([[1, 1, 1, 1, 1, 0]] * 4)
    ids = torch.zeros(4, 6)
    unmasked = tpv.estimate(model, X, NOISE).value
    assert tpv.estimate(
        model, [{"x": X, "attention_mask": encoder, "decoder_input_ids": ids}], NOISE
    ).value == pytest.approx(unmasked)
    own = {
        "x": X,
        "attention_mask": torch.ones(4, 6),
        "decoder_input_ids": ids,
        "decoder_attention_mask": encoder,
    }
    assert tpv.estimate(model, [own], NOISE).value == pytest.approx(
        tpv.estimate(model, X[:, :5], NOISE).value
    )


def test_class_scores_as_long_as_the_mask_are_not_masked() -> None:
    model = Shaped(lambda f: f.mean(1))
    mask = torch.tensor([[1, 0, 0]] * 4)
    assert tpv.estimate(model, [{"x": X, "attention_mask": mask}], NOISE).value == pytest.approx(
        tpv.estimate(model, X, NOISE).value
    )


def test_bad_outputs_are_refused_in_one_sentence() -> None:
    with pytest.raises(tpv.TPVError, match=r"output='probabilites'.*Did you mean 'probabilities'"):
        tpv.estimate(Shaped(), X, NOISE, output="probabilites")
    with pytest.raises(tpv.TPVError, match="at least two classes"):
        tpv.estimate(Shaped(lambda f: f[:, 0, 0]), X, NOISE, output="kl")
    with pytest.raises(tpv.TPVError, match=r"dict with a, b.*pass output="):
        tpv.estimate(Shaped(lambda f: {"a": f, "b": f}), X, NOISE)
