"""Every experiment runs, at the smallest scale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import label_noise
from experiments.pruning import __main__ as pruning

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("horizons", r"steps  std .*\n2 +0\.1 +[01]\.\d+ ± "),
        ("halves", r"train/test, cross-fitted +[01]\.\d+ ± "),
        ("quickstart", r"train/test, cross-fitted[\s\S]*control run on the test inputs: .*variance"),
        ("agreement", r"matrix-free[\s\S]*the same noise, matrix-free over dense: 1\.000\d\d? "),
        ("large", r"TPV [\s\S]*HutchPlusPlus\(rank=64, draws=8\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_label_noise(command: str, expected: str) -> None:
    result = CliRunner().invoke(label_noise.app, [command, "--smoke"])
    assert result.exit_code == 0, result.exception
    assert re.search(expected, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["ranks", "--images", "8", "--seeds", "2"], r"random +-?0\.\d+ [\s\S]*TPV, exact +0\.\d+ "),
        (["sizes", "--seeds", "2"], r"images[\s\S]*\n8 +0\.\d+ \("),
        (["cost", "--images", "8"], r"forward \+ backward +1\.00"),
        (
            [
                "accuracy",
                "--images",
                "8",
                "--steps",
                "2",
                "--seeds",
                "2",
                "--criterion",
                "TPV, jointly",
                "--criterion",
                "JBR",
            ],
            r"TPV, jointly +\d+\.\d ±",
        ),
        (
            ["restore", "--images", "8", "--seeds", "2", "--variant", "curves, TPV, re-fitted"],
            r"curves, TPV, re-fitted +\d+\.\d ±",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_pruning(command: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPV_CACHE_DIR", str(tmp_path))
    plot = ["--out", str(tmp_path / "plot.svg")] if command[0] == "accuracy" else []
    result = CliRunner().invoke(pruning.app, [*command, *plot, "--smoke"])
    assert result.exit_code == 0, result.exception
    assert re.search(expected, result.stdout), result.stdout
    assert not plot or (tmp_path / "plot.svg").stat().st_size > 1000
