"""The command line: arguments, files, printing, exit codes."""

from __future__ import annotations

import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from tpv.cli.console import console
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
from tpv.cli.prune import prune
from tpv.cli.spec import parse_estimator, parse_perturbation
from tpv.cli.target import load_target, make_importable
from tpv.common.errors import TPVError, did_you_mean
from tpv.common.files import put_text
from tpv.common.resume import ResumableStore
from tpv.report.contents import Report
from tpv.report.html import page
from tpv.report.measuring import Plan, finished_parts, measure
from tpv.report.noise import NOISE_EXAMPLES
from tpv.report.notes import noted
from tpv.report.subject import Subject
from tpv.report.terminal import show

_ELSEWHERE = "choose another folder with --out"
_EPILOG = "Exit codes: 0 done, 1 the model raised an error, 2 bad input, 130 interrupted."

app = typer.Typer(
    help="Test Prediction Variance: how much a trained network's predictions change when its weights are "
    "disturbed.",
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(prune)

Out = Annotated[Path, typer.Option(help="Folder for report.html and report.json.")]


_OUTPUTS = ("logits", "probabilities", "kl")


def _version(asked: bool) -> None:
    if asked:
        print(f"tpv {version('tpv')}")
        raise typer.Exit


@app.callback()
def _main(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(out: Out = Path("tpv-demo"), debug: Debug = False) -> None:
    """Train a small network on handwritten digits in seconds, then report on it."""
    with one_sentence(debug):
        torch.set_num_threads(1)  # threads cost more than they gain on 8 × 8 pixels
        print("Training a small convolutional network on scikit-learn's digits …", file=sys.stderr)
        _produce(load_target("tpv.demo"), Plan(), out, fresh=True)


@app.command()
def report(
    target: TargetArgument,
    perturbation: Annotated[
        list[str] | None,
        typer.Option(
            "--perturbation",
            "-p",
            help="Such as 'Quantization(bits=4)', 'a + b' or 'package.module:MyNoise(p=0.1)'; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N examples of each data set.")
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Such as 'Hutchinson(probes=4)'; by default each perturbation's own.")
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            metavar=f"[{'|'.join(_OUTPUTS)}]",
            help="The output space: outputs, their softmax, or the KL divergence in nats.",
        ),
    ] = "logits",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Group parameters by this expression in their names, such as 'layer\\.\\d+'.",
        ),
    ] = None,
    label_noise_examples: Annotated[
        int,
        typer.Option(
            min=2,
            help="How many training inputs LabelNoise is fitted on, and test inputs it is evaluated on.",
        ),
    ] = NOISE_EXAMPLES,
    seed: Seed = 0,
    device: Device = None,
    out: Out = Path("tpv-report"),
    as_json: Json = False,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Report how much the predictions of TARGET's model change under perturbations of its weights."""
    with one_sentence(debug):
        make_importable(target)
        plan = Plan(
            perturbations=tuple(map(parse_perturbation, perturbation)) if perturbation else None,
            estimator=None if estimator is None else parse_estimator(estimator),
            limit=limit,
            seed=seed,
            device=device_of(device),
            output=_output(output),
            layers=layers,
            label_noise_examples=label_noise_examples,
        )
        with stdout_for_json(as_json):
            torch.manual_seed(seed)
            finished = _produce(load_target(target), plan, out, fresh=fresh, quiet=as_json)
        if as_json:
            print(finished.to_json())


def _output(text: str) -> str:
    if text not in _OUTPUTS:
        raise TPVError(f"--output {text}: give logits, probabilities or kl.{did_you_mean(text, _OUTPUTS)}")
    return text


def _produce(subject: Subject, plan: Plan, out: Path, *, fresh: bool, quiet: bool = False) -> Report:
    """Measure, write both files, print the tables."""
    if plan.device is not None:
        subject.model.to(plan.device)
    store, parts = _store(subject, plan, out, fresh=fresh), len(plan.asked) + 1
    try:
        report = measure(subject, plan, store, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{finished_parts(plan, store)} of {parts} parts are finished; the same command resumes."
        ) from None
    put_text(out / "report.json", report.to_json() + "\n", _ELSEWHERE)
    put_text(out / "report.html", page(report), _ELSEWHERE)
    store.discard()
    output = console(stderr=quiet)
    if not quiet:
        show(report, output)
    output.print(f"\nReport: {out / 'report.html'}")
    return report


def _store(subject: Subject, plan: Plan, out: Path, *, fresh: bool) -> ResumableStore:
    """What an earlier run of the same command has finished, reported on standard error."""
    identity = subject.fingerprint(plan.limit, dataclasses.replace(plan, perturbations=()))
    store = ResumableStore(out, identity, advice=_ELSEWHERE, remedy="--fresh forgets all such files")
    store.prepare()
    if fresh:
        store.discard()
    with noted() as unreadable:
        finished = finished_parts(plan, store)
    for note in unreadable:
        print(f"tpv: {note}", file=sys.stderr)
    if finished:
        parts = len(plan.asked) + 1
        console(stderr=True).print(
            f"Resumed: {finished} of {parts} parts were finished before; --fresh starts from scratch."
        )
    return store
