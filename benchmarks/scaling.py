"""How the cost of an example grows with the number of examples, outputs and parameters and the length of a
sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from benchmarks.clock import seconds
from benchmarks.machine import machine
from benchmarks.measure import plain_pass
from benchmarks.process import fresh
from benchmarks.row import GPU_GROWTH, Row, Run
from benchmarks.rows.ours import EXACT, HUTCHINSON
from benchmarks.rows.torch_func import GRAD, JACREV
from benchmarks.subjects import GPTClassifier, ResNet20, Spec, Subject, ViT

METHODS: tuple[Row, ...] = (EXACT, HUTCHINSON, JACREV, GRAD)
_CALLS, _LONG, _BATCH = 2, 5.0, {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class Axis:
    """One quantity that grows: its values, and for each value the network and the number of examples."""

    name: str
    meaning: str
    values: tuple[int, ...]
    at: Callable[[int], tuple[Spec, int]]


AXES = (
    Axis("N", "examples, ResNet-20", (8, 32, 128, 512), lambda n: (ResNet20(), n)),
    Axis("K", "outputs, ResNet-20 with as many classes", (10, 30, 100), lambda k: (ResNet20(classes=k), 64)),
    Axis(
        "P",
        "parameters, ViT of width 64, 128, 256, 384",
        (64, 128, 256, 384),
        lambda width: (ViT(width=width), 64),
    ),
    Axis(
        "T",
        "tokens, GPT-2 classifier, 2 layers of width 128",
        (32, 128, 512),
        lambda t: (GPTClassifier(128, 2, 1024, t), 64),
    ),
)


@dataclass(frozen=True)
class Point:
    """A place on an axis."""

    spec: Spec
    examples: int
    device: str


def scaling(device: str, quick: bool, console: Console) -> list[dict[str, Any]]:
    """Every axis, each point in a process of its own."""
    return [axis_on(axis, device, quick, console) for axis in AXES]


def axis_on(axis: Axis, device: str, quick: bool, console: Console) -> dict[str, Any]:
    points = []
    growth = GPU_GROWTH if device == "cuda" and axis.name != "N" else 1
    for value in axis.values[:2] if quick else axis.values:
        spec, examples = axis.at(value)
        threads = 1 if quick else None
        with console.status(f"{axis.name} = {value}"):
            points.append(fresh(measured, Point(spec, examples * growth, device), threads))
        console.print(f"{axis.name} = {value} on {device}", style="dim")
    return {
        "axis": axis.name,
        "device": device,
        "meaning": axis.meaning,
        "machine": machine(device),
        "points": points,
    }


def measured(point: Point) -> dict[str, Any]:
    """Milliseconds per example of the plain pass and of every method."""
    subject = Subject.of(
        point.spec.network().to(point.device), point.spec.inputs(point.examples).to(point.device)
    )
    batch = _BATCH[point.device]
    plain = plain_pass(subject, batch, point.device)
    methods = {row.name: best(row.prepare(subject, batch), subject, plain, point.device) for row in METHODS}
    return {
        "N": point.examples,
        "K": subject.outputs,
        "P": sum(p.numel() for p in subject.parameters),
        "T": getattr(point.spec, "length", None),
        "plain": min(plain_time for _, plain_time in methods.values()),
        "methods": {name: own for name, (own, _) in methods.items()},
    }


def best(run: Run, subject: Subject, plain: Callable[[], float], device: str) -> tuple[float, float]:
    """Milliseconds per example of a method and of the plain pass alongside it, best of two after a warm-up
    call if that one is short.
    """
    first = seconds(run, 0, device)[0]
    pairs = [(seconds(run, seed, device)[0], plain()) for seed in range(_CALLS if first < _LONG else 1)]
    own, plain_time = (min(times) for times in zip(*pairs, strict=True))
    return 1000 * min(own, first) / len(subject.inputs), 1000 * plain_time
