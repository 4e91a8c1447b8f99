"""Label noise on ResNet-20: closed form against retraining, in sample against cross-fitted, the published
result, and large n.

TPV_DATA_DIR=... python -m experiments.label_noise horizons|halves|quickstart|large|agreement
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import cifar10_resnet20 as target

import tpv
from tpv.common.format import plus_minus, table

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
Scale = Annotated[
    bool, typer.Option("--smoke", help="Seconds instead of minutes: a random network, few images, few steps.")
]

SIGMAS, HORIZONS, LR = (0.01, 0.1, 0.3, 1.0), (10, 40, 160), 1e-4


def subjects(smoke: bool, n: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The network, training and test images."""
    if smoke:
        torch.manual_seed(0)
        return target.CifarResNet(8).eval(), *(torch.randn(16, 3, 8, 8) for _ in range(2))
    return target.model(), target.images("train")[:n], target.images("test")[:n]


@app.command()
def horizons(
    smoke: Scale = False,
    runs: int = 2,
    std: Annotated[list[float] | None, typer.Option(help="Repeatable.")] = None,
) -> None:
    """The ratio of the closed form to retraining with the same noise, by noise level and number of steps."""
    model, train, test = subjects(smoke, 128)
    rows = []
    for steps in HORIZONS if not smoke else (2, 3):
        for sigma in std or (SIGMAS if not smoke else (0.1,)):
            perturbation = tpv.LabelNoise(sigma, train, tpv.GradientDescent(LR, steps), relative=True)
            retraining = tpv.Retraining(perturbation, runs=runs)
            retrained = [tpv.estimate(model, x, retraining, progress=True) for x in (train, test)]
            same_noise = tpv.LinearizedMonteCarlo(runs)
            linear = [tpv.estimate(model, x, perturbation, estimator=same_noise) for x in (train, test)]
            v = tpv.linearity(model, test, retraining, draws=runs)
            ratios = [
                tpv.StabilityResult(a, b).in_sample_ratio for a, b in zip(linear, retrained, strict=True)
            ]
            cells = [f"{e.value:.3f} ± {e.mc_stderr:.3f}" for e in ratios]  # the examples are the same
            control = retrained[1].metadata["control"]["value"]
            rows.append(
                (
                    str(steps),
                    f"{sigma:g}",
                    *cells,
                    f"{v.value:.3f}",
                    f"{retrained[1].value:.3g}",
                    f"{control:.0e}",
                )
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(
        f"{runs} runs each, lr {LR:g} full batch, noise std × mean |f*|; closed form over retraining for the "
        "same noise\n"
    )
    print(table(("steps", "std", "train", "test", "V on test", "TPV on test", "control"), rows))


@app.command()
def halves(smoke: Scale = False, n: int = 128) -> None:
    """Train in sample and cross-fitted against test."""
    model, train, test = subjects(smoke, n)
    started = time.perf_counter()
    print(
        tpv.stability(
            model, train, test, tpv.LabelNoise(0.1, train, tpv.GradientDescent(LR, 50), relative=True)
        )
    )
    print(f"\n{time.perf_counter() - started:.0f} s, {tpv.NTK(model, train)!r}")


@app.command()
def quickstart(smoke: Scale = False) -> None:
    """The published protocol: 5 networks, 2,000 images, 5 epochs in batches of 256, momentum 0.9; with a
    control run, and cross-fitted.
    """
    n, batch, steps = (2000, 256, 40) if not smoke else (16, 4, 4)
    model, train, test = subjects(smoke, n)
    perturbation = tpv.LabelNoise(
        0.1, train, tpv.GradientDescent(LR, steps, momentum=0.9), center=False, relative=True
    )
    both = tpv.stability(model, train, test, tpv.Retraining(perturbation, batch_size=batch), progress=True)
    print(f"{both}\n\ncontrol run on the test inputs: {both.test.metadata['control']}")


@app.command()
def large(smoke: Scale = False, n: int = 2000, gamma: float = 200.0, rank: int = 64, draws: int = 8) -> None:
    """Matrix-free, on more images than the dense kernel allows."""
    model, train, test = subjects(smoke, n)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    perturbation = tpv.LabelNoise(0.1, train, tpv.Ridge(gamma), relative=True)
    started = time.perf_counter()
    result = tpv.estimate(model, test, perturbation, estimator=tpv.HutchPlusPlus(rank, draws))
    print(f"{result}\n\n{time.perf_counter() - started:.0f} s, {result.metadata['kernel']}")


@app.command()
def agreement(smoke: Scale = False, n: int = 128, draws: int = 3) -> None:
    """The dense kernel against matrix-free products, for the same noise and in expectation."""
    model, train, test = subjects(smoke, n)
    fit, limit = tpv.GradientDescent(LR, 50), tpv.ntk.operator.DENSE_BYTES
    exact: list[tpv.TPVResult] = []
    draws_of: dict[int, tuple[float, ...]] = {}
    for allowed in (limit, 0):
        tpv.ntk.operator.DENSE_BYTES = allowed
        perturbation = tpv.LabelNoise(0.1, train, fit, relative=True)
        exact.append(tpv.estimate(model, test, perturbation))
        same_noise = tpv.LinearizedMonteCarlo(draws)
        draws_of[allowed] = tpv.estimate(model, test, perturbation, estimator=same_noise).draws
    tpv.ntk.operator.DENSE_BYTES = limit
    for result in exact:
        print(
            f"{plus_minus(result.value, result.mc_stderr)} by {result.metadata['estimator']}, "
            f"{result.metadata['kernel']}"
        )
    ratios = (f"{b / a:.5f}" for a, b in zip(*draws_of.values(), strict=True))
    print("the same noise, matrix-free over dense:", *ratios)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    app()
