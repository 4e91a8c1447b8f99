"""``python -m benchmarks [--quick] [--only NAME]``: run every row, print the table, write the JSON and the page."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.suite import run
from benchmarks.table import markdown, terminal

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, nothing written: to see that every row runs")
    parser.add_argument("--only", default="", help="rows whose name contains this; nothing written")
    options = parser.parse_args()
    os.environ.update(ALLOCATOR)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder) / "subject.pt", options.quick, options.only, console)
    console.print(terminal(found))
    if not options.quick and not options.only:
        (HERE / "results.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        PAGE.write_text(markdown(found))
    return int(any(row["verdict"] == "DISAGREES" for row in found["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
