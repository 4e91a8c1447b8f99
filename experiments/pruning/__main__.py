"""Pruning: how well criteria rank channels, what accuracy is left, what re-fitting gives back, and what it
costs.

TPV_DATA_DIR=... python -m experiments.pruning ranks|sizes|cost|accuracy|restore --network
resnet20|resnet56|vgg
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.pruning.accuracy import accuracy_table, plot, trajectories
from experiments.pruning.cost import cost_table
from experiments.pruning.networks import NETWORKS, Network, smoke
from experiments.pruning.ours import COMPARED, EVERY
from experiments.pruning.ranks import rank_table
from experiments.pruning.restoring import VARIANTS, restored_table
from tpv.common.format import table

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
Names = StrEnum("Names", list(NETWORKS))
NetworkOption = Annotated[Names, typer.Option("--network", help="Which network.")]
Seeds = Annotated[int, typer.Option(help="How many sets of calibration images.")]
Images = Annotated[int, typer.Option(help="Calibration images in each.")]
Test = Annotated[int | None, typer.Option(help="Only the first so many test images.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Seconds instead of hours: a random network and random images.")
]


def _network(name: str, quick: bool) -> Network:
    torch.set_num_threads(torch.get_num_threads())
    return smoke() if quick else NETWORKS[name]


@app.command()
def ranks(
    network: NetworkOption = Names.resnet20, seeds: Seeds = 3, images: Images = 512, smoke: Smoke = False
) -> None:
    """Spearman's correlation of scores with the true damage of deleting each channel."""
    print(
        f"{network}, {images} calibration images: mean over {seeds} sets, their range, 95 % interval over "
        "channels for the first\n"
    )
    additive = {
        name: make for name, make in EVERY.items() if name != "TPV, jointly"
    }  # which is an order of removal, not a score
    for row in rank_table(_network(network, smoke), additive, seeds, images):
        print(row, flush=True)


@app.command()
def sizes(network: NetworkOption = Names.resnet20, seeds: Seeds = 3, smoke: Smoke = False) -> None:
    """The same for our criterion by number of calibration images."""
    rows = []
    for images in (16, 32, 64, 128, 256, 512, 1024, 2048) if not smoke else (4, 8):
        row = rank_table(
            _network(network, smoke),
            {name: EVERY[name] for name in ("TPV", "JBR by example", "JBR")},
            seeds,
            images,
        )
        rows.append(
            (
                str(images),
                *(
                    f"{r.mean:.3f} ({min(v.value for v in r.ranks):.3f} … "
                    f"{max(v.value for v in r.ranks):.3f})"
                    for r in row
                ),
            )
        )
    print(table((f"images ({network})", "TPV", "JBR by example", "JBR as published"), rows))


@app.command()
def cost(network: NetworkOption = Names.resnet20, images: Images = 512, smoke: Smoke = False) -> None:
    """What a scoring pass costs, in forward+backward passes."""
    print(f"{network}, {images} images, {torch.get_num_threads()} threads\n")
    print(cost_table(_network(network, smoke), images, 1 if smoke else 3))


@app.command()
def accuracy(
    network: NetworkOption = Names.resnet20,
    keep: float = 0.5,
    steps: int = 9,
    seeds: Seeds = 3,
    images: Images = 512,
    test: Test = None,
    criterion: Annotated[list[str] | None, typer.Option(help="Repeatable; by default all.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A file for the plot, such as docs/pruning-resnet20.svg.")
    ] = None,
    smoke: Smoke = False,
) -> None:
    """Accuracy against MACs and parameters under one ranking of all channels, nothing trained or
    re-fitted.
    """
    trained = _network(network, smoke)
    runs = trajectories(trained, keep, steps, seeds, images, test, tuple(criterion or COMPARED))
    print(f"{network}, {steps} steps, {images} calibration images, {seeds} sets\n\n{accuracy_table(runs)}")
    if out is not None:
        plot(runs, _accuracy(trained, test), out)


@app.command()
def restore(
    network: NetworkOption = Names.resnet20,
    keep: Annotated[list[float] | None, typer.Option(help="Shares of the MACs; repeatable.")] = None,
    seeds: Seeds = 3,
    images: Images = 512,
    test: Test = None,
    variant: Annotated[list[str] | None, typer.Option(help="Repeatable; by default all.")] = None,
    smoke: Smoke = False,
) -> None:
    """What recalibration, re-fitting and measured curves give back."""
    trained = _network(network, smoke)
    unpruned = f"unpruned {100 * _accuracy(trained, test):.1f} %"
    print(f"{network}, {images} calibration images, {seeds} sets; {unpruned}\n")
    shares, variants = tuple(keep or (0.5, 0.4)), tuple(variant or VARIANTS)
    print(restored_table(trained, shares, seeds, images, test, variants))


@torch.no_grad()
def _accuracy(network: Network, test: int | None) -> float:
    model, (x, y) = network.model(), network.images("test", slice(test))
    return torch.cat([model(part).argmax(1) for part in x.split(250)]).eq(y).double().mean().item()


if __name__ == "__main__":
    app()
