"""What all commands share: options, and errors as one sentence with an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, NoReturn

import torch
import typer

from tpv.cli.target import describe
from tpv.common.errors import TPVError

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A Python file or module that defines model, train_data and optionally test_data.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed for all randomness.")]
Device = Annotated[str | None, typer.Option(help="Device for the model and batches, such as 'cuda'.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard the finished parts of an interrupted run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the JSON instead of the tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error in the model.")]


def device_of(text: str | None) -> torch.device | None:
    """The device of that name, if it is there.

    Raises:
        TPVError: if it is not.
    """
    if text is None:
        return None
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TPVError(f"--device {text}: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def one_sentence(debug: bool) -> Iterator[None]:
    """Errors as one sentence and an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except TPVError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt as stop:
        _fail(f"interrupted: {stop}" if str(stop) else "interrupted.", 130)
    except Exception as error:
        if debug:
            raise
        _fail(f"the model or its data raised {describe(error)}; --debug shows the traceback.", 1)


def stdout_for_json(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """A context in which what the target prints does not mix with the JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"tpv: {sentence}", file=sys.stderr)
    raise typer.Exit(code)
