"""``python -m benchmarks``: run every row on every network and available device, then write the JSON, the
page and the plot.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import label_noise, store
from benchmarks.machine import devices
from benchmarks.page import PLOT, page
from benchmarks.plot import plot
from benchmarks.scaling import scaling
from benchmarks.subjects import SPECS
from benchmarks.suite import section
from benchmarks.terminal import terminal

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
DOCS = Path(__file__).parent.parent / "docs"
SCALING = "scaling"


def main() -> int:
    options = arguments()
    os.environ.update(ALLOCATOR)
    console = Console(width=120)
    disagree = False
    for kind, entry in parts(options, console):
        disagree |= any(row["verdict"] == "DISAGREES" for row in entry.get("rows", ()))
        if not (options.quick or options.only):
            store.add(kind, entry)
    if not (options.quick or options.only):
        render()
    return int(disagree)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parts = [*SPECS, label_noise.NAME, SCALING]
    parser.add_argument(
        "--subject",
        action="append",
        choices=parts,
        help="a network, label noise, or the scaling; default: all (with --quick: the first network)",
    )
    parser.add_argument(
        "--device", action="append", choices=devices(), help="default: all that are available"
    )
    parser.add_argument("--only", default="", help="only rows whose name contains this; nothing is written")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few examples and no tuning, to check that every row runs; nothing is written",
    )
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    return parser.parse_args()


def parts(options: argparse.Namespace, console: Console) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each selected section, and the scaling, as soon as it is measured."""
    if options.render:
        return
    subjects = options.subject or (
        [next(iter(SPECS))] if options.quick else [*SPECS, label_noise.NAME, SCALING]
    )
    for device in options.device or devices():
        for subject in subjects:
            if subject == SCALING:
                yield from (("scaling", axis) for axis in scaling(device, options.quick, console))
            elif subject == label_noise.NAME:
                yield "label_noise", label_noise.section(device, options.quick, console)
            else:
                measured = section(SPECS[subject], device, options.quick, options.only, console)
                console.print(terminal(measured))
                yield "sections", measured


def render() -> None:
    """Write the page and the plot from the JSON."""
    document = store.read()
    (DOCS / "benchmarks.md").write_text(page(document))
    if document["scaling"]:
        plot(document["scaling"], DOCS / PLOT)


if __name__ == "__main__":
    raise SystemExit(main())
