"""Other ways to the same numbers, on the same images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vmap

import tpv
from benchmarks.gpu_check.cost import estimate, precision, timed
from benchmarks.gpu_check.log import Fields, Log
from benchmarks.gpu_check.networks import Network, resnet20


def rivals(log: Log) -> None:
    """All on ResNet-20, float32; the value is Tr(H_eff), estimated or exact."""
    network = resnet20(log.device, log.device == "cpu")
    n = 8 if log.device == "cpu" else 64
    part = Network(network.name, network.model, network.x[:n])
    ways: dict[str, Callable[[], float]] = {
        "tpv, Exact": lambda: _ours(part, tpv.Exact()),
        "tpv, Hutchinson(1)": lambda: _ours(part, tpv.Hutchinson(1)),
        "tpv, Hutchinson(1), all images": lambda: _ours(network, tpv.Hutchinson(1)),
        "vmap(jacrev)": lambda: _jacobians(part),
        "one example at a time, one cotangent": lambda: _loop(part),
        "signs in weight space, one draw (jvp), all images": lambda: _weight_space(network),
        "curvlinops, hutchinson_trace, 8 products": lambda: _curvlinops(part),
    }
    for name, run in ways.items():
        log.check(
            name, lambda run=run, name=name: _row(run, log.device, len(network.x) if "all" in name else n)
        )


def _row(run: Callable[[], float], device: str, examples: int) -> Fields:
    with precision("float32", device):
        return {"value": run(), "examples": examples, "ms an example": 1e3 * timed(run, device, 2) / examples}


def _ours(network: Network, estimator: tpv.Estimator) -> float:
    return estimate(network, estimator)().value / 1e-4  # of σ = 0.01


def _parameters(network: Network) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.model.named_parameters()}


def _jacobians(network: Network) -> float:
    function = lambda w, x: functional_call(network.model, w, (x[None],))[0]  # noqa: E731
    weights, total = _parameters(network), torch.zeros((), device=network.x.device)
    for x in network.x.split(8):
        per_example = vmap(jacrev(function), (None, 0))(weights, x)
        total += sum(j.square().sum() for j in per_example.values())
    return total.item() / len(network.x)


def _loop(network: Network) -> float:
    parameters, total = list(network.model.parameters()), torch.zeros((), device=network.x.device)
    for x in network.x.unbind():
        f = network.model(x[None])
        v = torch.randint(0, 2, f.shape, device=f.device).to(f) * 2 - 1
        total += sum(g.square().sum() for g in torch.autograd.grad(f, parameters, v))
    return total.item() / len(network.x)


def _weight_space(network: Network) -> float:
    weights = _parameters(network)
    delta = {k: torch.randint(0, 2, w.shape, device=w.device).to(w) * 2 - 1 for k, w in weights.items()}
    total = torch.zeros((), device=network.x.device)
    for x in network.x.split(256):
        _, change = jvp(lambda w, x=x: functional_call(network.model, w, (x,)), (weights,), (delta,))
        total += change.square().sum()
    return total.item() / len(network.x)


def _curvlinops(network: Network) -> float:
    from curvlinops import GGNLinearOperator, hutchinson_trace

    targets = torch.zeros(len(network.x), network.outputs, device=network.x.device)
    parameters = dict(network.model.named_parameters())
    loss, data = torch.nn.MSELoss(reduction="sum"), [(network.x, targets)]
    try:
        operator = GGNLinearOperator(network.model, loss, parameters, data, check_deterministic=False)
    except (TypeError, AttributeError):
        operator = GGNLinearOperator(
            network.model, loss, list(parameters.values()), data, check_deterministic=False
        )
    return float(hutchinson_trace(operator, 8)) / (2 * len(network.x))
