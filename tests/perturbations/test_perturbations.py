"""Perturbations keep the contract, and their numbers are those of the quantizers they name."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
from cases import bound, randn, settled
from torch import nn

import tpv
from tpv.testing import assert_unchanged, check_perturbation


def network() -> nn.Module:
    torch.manual_seed(2)
    return settled(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 2), nn.Flatten(), nn.Linear(54, 3)
        )
    )


INT = [tpv.Quantization(bits=b, granularity=g, symmetric=s, range=r) for b, g, s, r in itertools.product((3, 8), ("tensor", "channel", "global"), (True, False), ("full", "restricted"))]  # fmt: skip
FLOAT = [tpv.Quantization(dtype=d, granularity=g) for d, g in itertools.product(("bf16", "fp16", "fp8_e4m3", "fp8_e5m2"), ("tensor", "channel"))]  # fmt: skip
GROUPS = [
    tpv.Quantization(bits=4, granularity="group", group_size=g, symmetric=s)
    for g in (4, 5, 1000)
    for s in (True, False)
]
PERTURBATIONS = [tpv.Isotropic(0.1), tpv.SGDNoise(lr=0.1, batch_size=8, momentum=0.9), *INT, *FLOAT, *GROUPS, tpv.Isotropic(0.1, params="4.*") + tpv.Quantization(bits=4)]  # fmt: skip


@pytest.mark.parametrize("perturbation", PERTURBATIONS, ids=repr)
def test_perturbations_keep_the_contract(perturbation: tpv.Perturbation) -> None:
    check_perturbation(perturbation, network(), draws=150)


@pytest.mark.parametrize("perturbation", [*INT, *FLOAT, *GROUPS], ids=repr)
def test_actual_errors_are_deterministic_and_at_most_half_a_step(perturbation: tpv.Quantization) -> None:
    import dataclasses

    actual = dataclasses.replace(perturbation, error="actual")
    model = network()
    check_perturbation(actual, model)
    weights = tpv.Weights(model)
    delta = bound(actual, model).sample(torch.Generator())
    steps = {
        name: (12 * c).sqrt().expand(weights[name].shape)
        for name, c in bound(perturbation, model).variance().items()
    }
    clipped = perturbation.symmetric and perturbation.range == "full" and perturbation.dtype == "int"
    slack = 0.51 if clipped or perturbation.dtype != "int" else 1e-6
    for name, d in delta.items():
        assert (d.abs() <= (0.5 + slack) * steps[name]).all(), name
        if (
            perturbation.bits > 3 and d.numel() > 100 and perturbation.group_size != 4
        ):  # of 4 weights, one is the largest: half a step off
            assert d.square().mean() == pytest.approx((steps[name] ** 2 / 12).mean().item(), rel=0.3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_those_of_torch(bits: int, symmetric: bool) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(40, 6, bias=False)
    layer.weight.data = w
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer = torch.ao.quantization.PerChannelMinMaxObserver(
            dtype=torch.qint32, qscheme=scheme, quant_min=low, quant_max=high
        )
        observer(w)
        scale, zero = observer.calculate_qparams()
    expected = torch.fake_quantize_per_channel_affine(w, scale, zero.to(torch.int32), 0, low, high)
    delta = tpv.Quantization(bits=bits, symmetric=symmetric, error="actual").sample(
        tpv.Weights(layer), torch.Generator()
    )["weight"]
    tie = ((w / scale.unsqueeze(1)).frac().abs() - 0.5).abs() < 1e-4
    assert tie.sum() <= 2 * len(w)
    assert (w + delta - expected)[~tie].abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_floats_are_real_casts_and_the_noise_model_is_within_three_percent(
    dtype: str, torch_dtype: torch.dtype
) -> None:
    layer = nn.Linear(300, 300, bias=False)
    at = tpv.Weights(layer)
    delta = tpv.Quantization(dtype=dtype, error="actual").sample(at, torch.Generator())["weight"]
    assert torch.equal(layer.weight.detach() + delta, layer.weight.detach().to(torch_dtype).float())
    variance = tpv.Quantization(dtype=dtype).variance(at)["weight"]
    assert delta.square().mean().item() == pytest.approx(variance.mean().item(), rel=0.03)


def test_channels_are_axis_one_for_transposed_convolutions_and_groups_run_along_inputs() -> None:
    at = tpv.Weights(network())
    variance = tpv.Quantization().variance(at)
    assert {n: tuple(c.shape) for n, c in variance.items()} == {
        "0.weight": (4, 1, 1, 1),
        "2.weight": (1, 6, 1, 1),
        "4.weight": (3, 1),
    }
    expected = at["2.weight"].abs().amax((0, 2, 3)) / 127.5
    assert torch.allclose(variance["2.weight"].flatten(), expected**2 / 12)
    grouped = tpv.Quantization(granularity="group", group_size=27).variance(at)["4.weight"]
    assert torch.allclose(
        (12 * grouped).sqrt()[:, :27],
        (at["4.weight"][:, :27].abs().amax(1, keepdim=True) / 127.5).expand(3, 27),
    )
    assert set(tpv.Quantization(granularity="global").variance(at)) == set(at)


def test_constant_tensors_do_not_move() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    for perturbation in (tpv.Quantization(bits=4, error="actual"), tpv.Quantization(bits=4, symmetric=False, error="actual"), tpv.Quantization(dtype="fp8_e4m3", error="actual")):  # fmt: skip
        assert perturbation.sample(tpv.Weights(layer), torch.Generator())["weight"].abs().max() == 0


def test_masking_removes_and_displacement_reaches_the_checkpoint() -> None:
    model, x = network(), randn(2, 2, 4, 4)
    mask = torch.ones(4, 1, 1, 1)
    mask[1] = 0
    pruned = network()
    with torch.no_grad():
        pruned[0].weight[1] = 0
        expected = (pruned(x) - model(x)).square().sum(1).mean().item()
    for perturbation in (tpv.Masking({"0.weight": mask}), tpv.Displacement(pruned.state_dict())):
        assert tpv.estimate(model, x, perturbation, estimator=tpv.MonteCarlo()).value == pytest.approx(
            expected, rel=1e-12
        )
        check_perturbation(perturbation, model)


def test_displacement_warns_about_buffers_that_it_does_not_move() -> None:
    model, other = network(), network()
    other[1].running_mean += 1
    with pytest.warns(UserWarning, match=r"first: '1\.running_mean'"):
        tpv.estimate(model, randn(2, 2, 4, 4), tpv.Displacement(other.state_dict()))


def test_sums_restrict_each_part_by_itself() -> None:
    perturbation = tpv.Isotropic(1.0, params="0.*") + tpv.Isotropic(2.0, params=["0.bias", "4.*"])
    variance = bound(perturbation, network()).variance()
    assert {n: c.item() for n, c in variance.items()} == {
        "0.weight": 1.0,
        "0.bias": 5.0,
        "4.weight": 4.0,
        "4.bias": 4.0,
    }
    assert (
        repr(perturbation)
        == "Isotropic(std=1.0, params='0.*') + Isotropic(std=2.0, params=['0.bias', '4.*'])"
    )
    with pytest.raises(tpv.TPVError, match="only independent zero-mean"):
        perturbation + tpv.Quantization(error="actual")
    with pytest.raises(TypeError):
        perturbation + 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: tpv.Quantization(bits=0), r"Quantization\(bits=0\): bits must be an int in \[1, 16\]"),
        (lambda: tpv.Quantization(bits=4.0), "bits must be an int"),
        (lambda: tpv.Quantization(bits=True), "bits must be an int"),
        (lambda: tpv.Quantization(granularity="chanel"), "Did you mean 'channel'"),
        (lambda: tpv.Quantization(dtype="fp8"), "must be one of 'int', 'bf16'"),
        (lambda: tpv.Quantization(error="real"), "must be one of 'noise', 'actual'"),
        (lambda: tpv.Quantization(range="half"), "must be one of 'full', 'restricted'"),
        (lambda: tpv.Quantization(granularity="group"), "group_size must be an int of at least 1"),
        (lambda: tpv.Quantization(group_size=4), "group_size needs granularity='group'"),
        (lambda: tpv.Quantization(bits=4, dtype="bf16"), "bits is for dtype='int' only"),
        (lambda: tpv.Quantization(bits=1, range="restricted"), "single level"),
        (lambda: tpv.Isotropic(-1), r"Isotropic\(std=-1\): std must be a number in \[0, inf\)"),
        (lambda: tpv.Isotropic(float("nan")), "must be a number"),
        (lambda: tpv.Isotropic("1"), "must be a number"),
        (lambda: tpv.SGDNoise(lr=0, batch_size=8), r"lr must be a number in \(0, inf\)"),
        (lambda: tpv.SGDNoise(lr=0.1, batch_size=0), "batch_size must be an int of at least 1"),
        (lambda: tpv.SGDNoise(lr=0.1, batch_size=8, momentum=1.0), r"momentum must be a number in \[0, 1\)"),
        (lambda: tpv.Displacement(None), r"Displacement\(state_dict=\.\.\.\) is a NoneType: give a mapping"),
        (lambda: tpv.Masking(torch.ones(2)), r"Masking\(masks=\.\.\.\) is a Tensor: give a mapping"),
        (lambda: tpv.NTK(nn.Linear(4, 2), randn(3, 4).float(), chunk_size=-1), "chunk_size must be an int of at least 1"),
        (lambda: tpv.estimate(nn.Linear(4, 2), randn(3, 4).float(), tpv.Isotropic(0.1, params=5)), "params=5: give a glob"),
        (lambda: tpv.estimate(nn.Linear(4, 2), randn(3, 4).float(), tpv.Isotropic(0.1), output=["logits"]), "output=.*: give 'logits'"),
        (lambda: tpv.estimate(nn.Linear(4, 2), randn(3, 4).float(), tpv.Isotropic(0.1), forward="f"), r"forward='f' is a str: give a function"),
    ],
)  # fmt: skip
def test_wrong_options_get_one_sentence(make, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Broken(tpv.Perturbation):
    how: str

    def sample(self, at, generator):
        w = {name: torch.randn(p.shape, generator=generator) for name, p in at.items()}
        match self.how:
            case "name":
                return {"0.wieght": w["0.weight"]}
            case "shape":
                return {"0.weight": w["0.weight"][0]}
            case "nan":
                return {"0.weight": w["0.weight"] * float("nan")}
            case "nothing":
                return {}
            case "mean":
                return {name: 1 + d for name, d in w.items()}
            case "global":
                return {name: torch.randn_like(p) for name, p in at.items()}
            case "in place":
                at["0.weight"].mul_(2)
                return w
            case "by NumPy":
                at["0.weight"].detach().numpy()[0] += 1
                return w
            case "constant":
                return {name: torch.ones_like(p) for name, p in at.items()}
            case _:
                return w

    def variance(self, at):
        match self.how:
            case "variance shape":
                return {"0.weight": torch.ones(7)}
            case "negative":
                return {"0.weight": -torch.ones(())}
            case "variance":
                return {name: torch.tensor(4.0) for name in at}
            case "mean":
                return {name: torch.tensor(2.0) for name in at}
            case _:
                return None


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("name", r"'0\.wieght', which is not a selected trainable parameter\. Did you mean '0\.weight'"),
        ("shape", r"the parameter has \(4, 2, 3, 3\)"),
        ("nan", "NaN or infinity"),
        ("nothing", "moves no parameter"),
        ("variance shape", "does not broadcast"),
        ("negative", "negative, NaN or infinite"),
    ],
)
def test_broken_perturbations_are_refused(how: str, sentence: str) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(network(), randn(2, 2, 4, 4), Broken(how))


@pytest.mark.parametrize(("how", "sentence"), [("mean", "is not zero"), ("variance", "total variance"), ("global", "same seed"), ("constant", "two seeds")])  # fmt: skip
def test_check_perturbation_finds_what_is_broken(how: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_perturbation(Broken(how), network(), draws=100)


def test_check_perturbation_refuses_a_draw_that_writes_to_the_weights_before_it_does() -> None:
    model = network()
    with assert_unchanged(model), pytest.raises(tpv.TPVError, match=r"writes into '0\.weight'"):
        check_perturbation(Broken("in place"), model)


def test_check_perturbation_finds_writes_that_nothing_can_refuse() -> None:
    with pytest.raises(AssertionError, match=r"0\.weight has changed"):
        check_perturbation(Broken("by NumPy"), network(), draws=2)


def test_sum_adds_perturbations() -> None:
    a, b = tpv.Isotropic(0.1), tpv.Quantization(bits=4)
    assert sum([a, b]) == a + b
    with pytest.raises(TypeError):
        1 + a


@pytest.mark.parametrize(
    ("perturbation", "sentence"),
    [
        (tpv.Isotropic(1.0, params="layer1.*"), r"params='layer1\.\*' matches no trainable parameter"),
        (tpv.Isotropic(1.0, params=["0.*", "4.wieght"]), r"Did you mean '4\.weight'"),
        (tpv.Displacement({}), r"has no '0\.weight'"),
        (tpv.Displacement({"0.weight": torch.ones(1)}, params="0.weight"), r"the model has \(4, 2, 3, 3\)"),
        (tpv.Masking({"0.weihgt": torch.ones(1)}), r"Did you mean '0\.weight'"),
        (tpv.Masking({"0.weight": torch.ones(5)}), "does not broadcast"),
        (tpv.Masking({"0.weight": torch.full((), 0.5)}), "values other than 0"),
        (tpv.Quantization(params="1.*"), "moves no parameter"),
    ],
)
def test_perturbations_that_do_not_fit_the_model_are_refused(
    perturbation: tpv.Perturbation, sentence: str
) -> None:
    with pytest.raises(tpv.TPVError, match=sentence):
        tpv.estimate(network(), randn(2, 2, 4, 4), perturbation)


def test_masks_may_be_arrays_and_lists() -> None:
    model = nn.Linear(3, 2, bias=False).double()
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    deltas = [bound(tpv.Masking({"weight": m}), model).sample(torch.Generator())["weight"] for m in (mask, mask.numpy(), mask.tolist())]  # fmt: skip
    assert torch.equal(deltas[0], deltas[1])
    assert torch.equal(deltas[0], deltas[2])
    assert torch.equal(model.weight + deltas[0], model.weight * mask)
