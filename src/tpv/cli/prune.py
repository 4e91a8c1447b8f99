"""``tpv prune``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tpv.pruning
from tpv.cli.console import console
from tpv.cli.options import (
    Debug,
    Device,
    Json,
    Seed,
    TargetArgument,
    device_of,
    one_sentence,
    stdout_for_json,
)
from tpv.cli.spec import parse_criterion
from tpv.cli.target import load_target, make_importable
from tpv.common.errors import TPVError, did_you_mean
from tpv.common.files import put_text
from tpv.plots.pruning import pruning_svg
from tpv.pruning import JBR, JC, PruningConfig, PruningResult
from tpv.pruning import Target as Share
from tpv.pruning import prune as tpv_prune
from tpv.pruning.channels.tracing import torch_pruning
from tpv.pruning.files.folder import PLOT, TITLE, check_writable
from tpv.report.subject import Subject
from tpv.report.view import View

CALIBRATION = 512
_SHORT: dict[str, Callable[[], Any]] = {
    "tpv": lambda: None,
    "jbr": JBR,
    "jc": JC,
    "random": lambda: torch_pruning().importance.RandomImportance(),
    "l1": lambda: torch_pruning().importance.MagnitudeImportance(p=1),
    "l2": lambda: torch_pruning().importance.MagnitudeImportance(p=2),
}


class Allocated(StrEnum):
    """How widths are chosen."""

    ranking = "global"
    uniform = "uniform"
    curves = "curves"


@dataclass(frozen=True)
class _Request:
    """The arguments of :func:`tpv.prune` that the command line gives."""

    share: Share
    options: dict[str, Any]
    config: PruningConfig
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
            help="tpv, jbr, jc (needs labels), random, l1, l2; or a class with options, "
            "such as 'JBR(confidence=0.9)'."
        ),
    ] = "tpv",
    allocation: Annotated[
        Allocated,
        typer.Option(
            help="One ranking of all channels, the same share of every layer, or the best widths by measured "
            "curves."
        ),
    ] = Allocated.ranking,
    steps: Annotated[int | None, typer.Option(min=1, help="By default 9, or 1 with curves.")] = None,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Re-fit the layers behind removed channels, without labels.")
    ] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Recompute BatchNorm's statistics.")
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in the folder that tpv did not write, too.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make TARGET's model smaller: remove the channels whose loss changes its predictions least, without
    training.

    Calibrates on train_data without labels; on labelled test_data, batches (inputs, labels), accuracy is
    measured.
    """
    with one_sentence(debug):
        make_importable(target)
        options = {
            "criterion": _criterion(criterion),
            "allocation": allocation.value,
            "compensate": compensate,
        }
        config = PruningConfig(
            steps=steps,
            ignore=tuple(ignore or ()),
            recalibrate=recalibrate,
            generator=seed,
            out=out,
            overwrite=overwrite,
        )
        check_writable(out, PLOT, overwrite=overwrite)
        request = _Request(Share.parse(share), options, config, limit, device_of(device), out)
        with stdout_for_json(as_json):
            torch.manual_seed(seed)
            result = _produce(load_target(target), request)
        if as_json:
            print(result.to_json())
        output = console(stderr=as_json)
        if not as_json:
            output.print(f"{result}\n")
        output.print(
            f"tpv.pruning.load(model, {str(out)!r}) reads the pruned network:\n{out / 'model.safetensors'}",
            soft_wrap=True,
        )


def _criterion(text: str) -> Any:
    """A criterion, None for the library's own choice."""
    if (make := _SHORT.get(text.strip().lower())) is not None:
        return make()
    if text.isidentifier() and text not in tpv.pruning.__all__:
        raise TPVError(
            f"--criterion {text!r}: there are {', '.join(_SHORT)}, and classes with options, such as "
            f"'JBR(confidence=0.9)'.{did_you_mean(text, _SHORT)}"
        )
    return parse_criterion(text)


def _produce(target: Subject, request: _Request) -> PruningResult:
    """Prune, and write all files."""
    if request.device is not None:
        target.model.to(request.device)
    test = None if target.test is None else View(target.test, None, request.device)
    result = tpv_prune(
        target.model,
        View(target.train, request.limit, request.device),
        request.share,
        test=test,
        forward=target.forward,
        progress=True,
        config=request.config,
        **request.options,
    )
    put_text(request.out / PLOT, pruning_svg(result.plot_data(), accuracy=result.has_accuracy, title=TITLE))
    return result
