"""``python -m benchmarks.gpu_check --device cuda --out DIR``: writes gpu_check.json and .md as it goes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def main() -> None:
    """Parse the options and run the sections in the order of their value."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--only", nargs="*", help="sections, by the beginnings of their names")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device on this machine: run with --device cpu")
    _be_installed()
    run(asked.device, asked.minutes, asked.out, asked.only)


def run(device: str, minutes: float, out: Path, only: list[str] | None = None) -> None:
    """Every section, the cost first; the architectures have all the time that is left."""
    from benchmarks.gpu_check import correctness, cost, profile, rivals
    from benchmarks.gpu_check.log import Log

    log = Log(out, device, 60 * minutes)
    share = minutes / 8
    for name, seconds, section in (
        ("Cost in plain forward and backward passes (u)", 120, cost.table),
        ("Fixed cost", 20, cost.fixed),
        ("Perturbations, label noise, pruning: device against CPU", 30, correctness.perturbations),
        ("Repeatability", 20, correctness.repeatability),
        ("Out of memory", 20, correctness.memory),
        ("Profile", 80, profile.where_the_time_goes),
        ("Rivals", 40, rivals.rivals),
        ("Architectures: Exact, float64, device against CPU", 480, correctness.architectures),
    ):
        if only and not name.lower().startswith(tuple(o.lower() for o in only)):
            continue
        log.section(name, share * seconds)
        try:
            if not log.late:
                section(log)
        except Exception:
            text = traceback.format_exc(limit=-3)
            log.check("section", lambda text=text: {"result": f"FAILED: {text[-500:]}"})


def _be_installed() -> None:
    """Where the package is on the path but not installed, give it the version that results record."""
    try:
        version("tpv")
    except PackageNotFoundError:
        root = Path(tempfile.mkdtemp())
        (root / "tpv-0.dist-info").mkdir()
        (root / "tpv-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tpv\nVersion: 0\n")
        sys.path.append(str(root))


if __name__ == "__main__":
    main()
