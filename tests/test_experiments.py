"""Every experiment runs, at the smallest scale."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from experiments import label_noise


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("horizons", r"steps  std .*\n2 +0\.1 +[01]\.\d+ ± "),
        ("halves", r"train/test, cross-fitted +[01]\.\d+ ± "),
        ("quickstart", r"train/test, cross-fitted[\s\S]*control run on the test inputs: .*variance"),
        ("agreement", r"matrix-free[\s\S]*the same noise, products over written out: 1\.000\d\d? "),
        ("large", r"TPV [\s\S]*HutchPlusPlus\(rank=64, draws=8\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_label_noise(command: str, expected: str) -> None:
    result = CliRunner().invoke(label_noise.app, [command, "--smoke"])
    assert result.exit_code == 0, result.exception
    assert re.search(expected, result.stdout), result.stdout
