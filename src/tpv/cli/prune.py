"""``tpv prune``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import tpv.pruning
from tpv.cli.options import (
    Debug,
    Device,
    Fresh,
    Json,
    Seed,
    TargetArgument,
    device_of,
    one_sentence,
    stdout_for_json,
)
from tpv.cli.spec import parse_criterion
from tpv.cli.target import Target, load_target, make_importable
from tpv.common.errors import TPVError, did_you_mean
from tpv.common.files import put_text
from tpv.pruning import JBR, JC, Criterion, Magnitude, PruningResult, Random
from tpv.pruning import Target as Share
from tpv.pruning import prune as tpv_prune
from tpv.pruning.run.plots import svg_file
from tpv.report.stages import Tell
from tpv.report.terminal import console, progress_bars
from tpv.report.view import View

CALIBRATION = 512
_SHORT = ("tpv", "jbr", "jc", "random", "l1", "l2")


class Allocated(StrEnum):
    """How widths are chosen."""

    ranking = "global"
    uniform = "uniform"
    curves = "curves"


@dataclass(frozen=True)
class _Plan:
    """The arguments of :func:`tpv.prune` that the command line gives."""

    share: Share
    options: dict[str, Any]
    limit: int
    device: torch.device | None
    out: Path


def prune(
    target: TargetArgument,
    share: Annotated[
        str, typer.Option("--target", help="What is to stay: 'macs=0.5' or 'params=0.5'.")
    ] = "macs=0.5",
    criterion: Annotated[
        str,
        typer.Option(
            help="tpv, jbr, jc (needs labels), random, l1, l2; or a class with options, such as 'JBR(confidence=0.9)'."
        ),
    ] = "tpv",
    allocation: Annotated[
        Allocated,
        typer.Option(
            help="One ranking of all channels, the same share of every layer, or the best widths by measured curves."
        ),
    ] = Allocated.ranking,
    steps: Annotated[int | None, typer.Option(min=1, help="By default 9, or 1 with curves.")] = None,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Re-fit the layers behind removed channels, without labels.")
    ] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Set BatchNorm's statistics anew.")
    ] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Layers whose channels all stay; repeatable.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Calibrate on the first so many training inputs.")
    ] = CALIBRATION,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the pruned network, pruning.json, log.json and pruning.svg.")
    ] = Path("tpv-pruned"),
    as_json: Json = False,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Make TARGET's model smaller: remove the channels whose loss moves its predictions least, without
    training.

    Calibrates on train_data without labels; on labelled test_data, batches (inputs, labels), accuracy is
    measured.
    """
    with one_sentence(debug):
        make_importable(target)
        options = {
            "criterion": _criterion(criterion, seed),
            "allocation": allocation.value,
            "steps": steps,
            "compensate": compensate,
            "recalibrate": recalibrate,
            "ignore": tuple(ignore or ()),
            "generator": seed,
            "fresh": fresh,
        }
        plan = _Plan(Share.parse(share), options, limit, device_of(device), out)
        with stdout_for_json(as_json):
            torch.manual_seed(seed)
            made = _produce(load_target(target), plan)
        if as_json:
            print(made.to_json())
        told = console(stderr=as_json)
        if not as_json:
            told.print(f"{made}\n")
        told.print(
            f"tpv.pruning.load(model, {str(out)!r}) reads the pruned network:\n{out / 'model.safetensors'}",
            soft_wrap=True,
        )


def _criterion(text: str, seed: int) -> Any:
    """A criterion, None for the library's own choice."""
    short: tuple[Criterion | Magnitude | Random | None, ...] = (
        None,
        JBR(),
        JC(),
        Random(seed),
        Magnitude(1),
        Magnitude(2),
    )
    if text.strip().lower() in _SHORT:
        return dict(zip(_SHORT, short, strict=True))[text.strip().lower()]
    if text.isidentifier() and text not in tpv.pruning.__all__:
        raise TPVError(
            f"--criterion {text!r}: there are {', '.join(_SHORT)}, and classes with options, such as "
            "'JBR(confidence=0.9)'."
            f"{did_you_mean(text, _SHORT)}"
        )
    return parse_criterion(text)


def _produce(target: Target, plan: _Plan) -> PruningResult:
    """Prune, and write all files."""
    told = console(stderr=True)
    if plan.device is not None:
        target.model.to(plan.device)
    data = View(target.train, plan.limit, plan.device)
    test = None if target.test is None else View(target.test, None, plan.device)
    with progress_bars(told) as tell:
        watch = _Watch(told, tell)
        try:
            made = tpv_prune(
                target.model,
                data,
                plan.share,
                test=test,
                forward=target.forward,
                out=plan.out,
                progress=watch,
                **plan.options,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(watch.said) from None
    put_text(plan.out / "pruning.svg", svg_file(made))
    return made


class _Watch:
    """Tells how far the work is, and that it resumes."""

    def __init__(self, told: Console, tell: Tell) -> None:
        self._told, self._tell = told, tell
        self._steps: tuple[int, int] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "pruning":
            if self._steps is None and done:
                self._told.print(
                    f"Resumed: {done} of {total} steps were finished before; --fresh starts afresh."
                )
            self._steps = done, total
        self._tell("tpv", what, done, total)

    @property
    def said(self) -> str:
        """What is finished."""
        return (
            f"{self._steps[0]} of {self._steps[1]} steps are finished; the same command resumes."
            if self._steps
            else ""
        )
