"""Accuracy against MACs and parameters, criterion by criterion."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.pruning.baselines import WITHOUT_DATA
from experiments.pruning.networks import Network
from experiments.pruning.ours import EVERY
from experiments.pruning.runs import run
from experiments.pruning.statistics import over_seeds, percents
from tpv.common.format import table
from tpv.pruning import PruningStep

Trajectories = dict[str, list[tuple[PruningStep, ...]]]


def trajectories(
    network: Network,
    keep: float,
    steps: int,
    seeds: int,
    images: int,
    test: int | None,
    names: tuple[str, ...],
) -> Trajectories:
    """Name → the steps of each calibration set; criteria without data or randomness run once."""
    steps_of: Trajectories = {}
    for name in names:
        steps_of[name] = []
        for seed in range(1 if name in WITHOUT_DATA else seeds):
            steps_of[name].append(
                run(
                    network,
                    f"{name} {steps}",
                    seed,
                    f"macs={keep}",
                    images,
                    test,
                    criterion=EVERY[name],
                    steps=steps,
                ).steps
            )
            print(
                network.name,
                name,
                seed,
                [round(step.accuracy.value, 3) for step in steps_of[name][-1]],
                file=sys.stderr,
                flush=True,
            )
    return steps_of


def accuracy_table(steps_of: Trajectories) -> str:
    """A row for each criterion, a column for each share of the MACs."""
    shares = [f"{step.macs_share:.0%}" for step in next(iter(steps_of.values()))[0]]
    rows = []
    for name, runs in steps_of.items():
        cells = [over_seeds([step.accuracy for step in same]) for same in zip(*runs, strict=True)]
        rows.append((name, *map(percents, cells)))
    return table(("accuracy at MACs of", *shares), rows)


def plot(steps_of: Trajectories, base: float, file: Path) -> None:
    """Accuracy against the share of MACs and of parameters."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    styles = {
        "TPV, jointly": {"color": "#2f6fb0", "lw": 2.5},
        "TPV": {"color": "#2f6fb0", "lw": 1.5, "ls": "--"},
        "random": {"color": "#999999", "ls": ":"},
    }
    for ax, share in zip(axes, ("macs_share", "params_share"), strict=True):
        for i, (name, runs) in enumerate(steps_of.items()):
            x = [1, *[sum(getattr(s, share) for s in same) / len(same) for same in zip(*runs, strict=True)]]
            cells = [over_seeds([s.accuracy for s in same]) for same in zip(*runs, strict=True)]
            style = {"color": plt.get_cmap("tab20")(i), "lw": 1} | styles.get(name, {})
            ax.errorbar(
                x,
                [base, *[c.value for c in cells]],
                [0, *[c.stderr for c in cells]],
                label=name,
                elinewidth=0.7,
                **style,
            )
        ax.set_xlabel("share of the MACs" if share == "macs_share" else "share of the parameters")
        ax.invert_xaxis()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy on test images")
    axes[1].legend(fontsize=7, ncols=1, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)
