"""Label noise on the trained ResNet-20: the kernel compared with other libraries, and the closed form with
retraining.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import tpv
from benchmarks.cells import markdown_table, short
from benchmarks.machine import machine
from benchmarks.memory import Peak
from benchmarks.process import fresh
from benchmarks.subjects.images import example

NAME, IMAGES, STEPS, LR, RUNS, TARGET = "label-noise", 128, 50, 1e-4, 3, 20.0
Kernel = Callable[[nn.Module, Tensor], Tensor]


def section(device: str, quick: bool, console: Console) -> dict[str, Any]:
    """Every kernel and the comparison, each in a process of its own."""
    kernels = []
    for name in KERNELS:
        with console.status(f"{name} on {device}"):
            kernels.append(fresh(kernel, (name, device, quick), 1 if quick else None))
    with console.status(f"retraining on {device}"):
        against = fresh(retraining, (device, quick), 1 if quick else None)
    measured = {
        "subject": NAME,
        "device": device,
        "machine": machine(device),
        "kernels": kernels,
        "against": against,
    }
    console.print(page(measured))
    return measured


def subject(device: str, quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network with images, or a small random one."""
    target = example()
    torch.manual_seed(0)
    if quick:
        return target.CifarResNet(8).eval(), *(torch.randn(16, 3, 32, 32) for _ in range(2))
    return target.model().to(device), *(
        target.images(split)[:IMAGES].to(device) for split in ("train", "test")
    )


def ours(model: nn.Module, x: Tensor) -> Tensor:
    return tpv.NTK(model, x, center=False).matrix


def contraction(model: nn.Module, x: Tensor) -> Tensor:
    """As in the tutorial of torch.func: all Jacobians at once, contracted parameter by parameter."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    per_example = vmap(jacrev(lambda w, one: functional_call(model, w, (one[None],)).flatten()), (None, 0))
    blocks = [per_example(weights, part) for part in x.split(16)]
    rows = {name: torch.cat([block[name].flatten(2) for block in blocks]).flatten(0, 1) for name in weights}
    return sum((j @ j.T for j in rows.values()), start=torch.zeros((), device=x.device))


def nngeometry(model: nn.Module, x: Tensor) -> Tensor:
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection
    from torch.utils.data import DataLoader, TensorDataset

    model = copy.deepcopy(model)
    loader = DataLoader(TensorDataset(x), batch_size=len(x))
    gram = GramMatrix(
        model, loader, lambda *d: model(d[0]), layer_collection=LayerCollection.from_model(model)
    )
    return gram.to_torch().reshape(len(x) * 10, -1)


KERNELS: dict[str, Kernel] = {
    "tpv NTK": ours,
    "torch.func Jacobian contraction": contraction,
    "NNGeometry GramMatrix": nngeometry,
}


def kernel(job: tuple[str, str, bool]) -> dict[str, Any]:
    """Seconds, best of two, and memory of one way to compute the dense kernel."""
    name, device, quick = job
    model, train, _ = subject(device, quick)
    peak, times = Peak(device), []
    try:
        for _ in range(2):
            started = time.perf_counter()
            matrix = KERNELS[name](model, train)
            times.append(time.perf_counter() - started)
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    return {
        "name": name,
        "seconds": min(times),
        "bytes": peak.bytes(),
        "trace": matrix.diagonal().double().sum().item(),
    }


def retraining(job: tuple[str, bool]) -> dict[str, Any]:
    """The closed form, and how long retraining takes to the same standard error."""
    model, train, test = subject(*job)
    fit = tpv.GradientDescent(LR, STEPS if not job[1] else 2)

    def perturbation() -> tpv.LabelNoise:
        return tpv.LabelNoise(0.1, train, fit, relative=True)

    times = []
    for _ in range(2):
        started = time.perf_counter()
        exact = tpv.estimate(model, test, perturbation())
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    retrained = tpv.estimate(model, test, tpv.Retraining(perturbation(), runs=RUNS))
    each = (time.perf_counter() - started) / (RUNS + 1)
    return {
        "seconds": min(times),
        "value": exact.value,
        "stderr": exact.stderr,
        "draw_std": exact.draw_std,
        "run_seconds": each,
        "retrained": retrained.value,
        "retrained_mc_stderr": retrained.mc_stderr,
        "steps": fit.steps,
        "examples": len(train),
    }


def page(section: dict[str, Any]) -> str:
    """The Markdown."""
    a, kernels = section["against"], section["kernels"]
    images = f"{a['examples']} + {a['examples']} CIFAR-10 images"
    head = f"## {NAME}, {section['device']}\n\nThe trained ResNet-20 on {images}."
    own = kernels[0]
    rows = [
        (k["name"], *(_cells(k, own) if "seconds" in k else ("failed", "", "", k["error"]))) for k in kernels
    ]
    table = markdown_table(("kernel", "s", "÷ tpv", "MiB", "trace ÷ tpv's − 1"), rows, left=(0,))
    levels = [
        ("that due to the finite number of test images", a["stderr"]),
        *((f"{p} % of the value", p / 100 * a["value"]) for p in (5, 1)),
    ]
    compared = [
        (
            words,
            f"{math.ceil(runs):,}",
            f"{runs * a['run_seconds']:,.0f}",
            short(runs * a["run_seconds"] / a["seconds"]),
        )
        for words, runs in ((words, max(2.0, (a["draw_std"] / error) ** 2)) for words, error in levels)
    ]
    races = markdown_table(
        ("to a standard error of", "retrained networks", "s", "÷ closed form"), compared, left=(0,)
    )
    return (
        f"{head}\n\n{table}\n\n"
        f"Retraining for {a['steps']} steps takes {a['run_seconds']:.1f} s a network, the closed form "
        f"{a['seconds']:.1f} s in all, "
        "without Monte-Carlo error. One network's TPV has a standard deviation of "
        f"{a['draw_std'] / a['value']:.0%} of its mean; reaching the same standard error by retraining takes "
        f"(target: {TARGET:g} times as long):\n\n{races}\n\n"
        f"The two agree: {a['value']:.4g} in closed form, {a['retrained']:.4g} ± "
        f"{a['retrained_mc_stderr']:.2g} from {RUNS} networks.\n"
    )


def _cells(kernel: dict[str, Any], own: dict[str, Any]) -> tuple[str, ...]:
    ratio, memory = kernel["seconds"] / own["seconds"], kernel["bytes"] / 2**20
    return (
        f"{kernel['seconds']:.1f}",
        f"{ratio:.2f}",
        f"{memory:,.0f}",
        f"{kernel['trace'] / own['trace'] - 1:.0e}",
    )
