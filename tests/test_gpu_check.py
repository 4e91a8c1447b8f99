"""The check for a GPU: its results are written as they come, whatever fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_check.__main__ import run
from benchmarks.gpu_check.log import Log, same


def fails() -> dict[str, object]:
    raise RuntimeError("not on this device")


def test_results_are_on_disk_after_each_check(tmp_path: Path) -> None:
    log = Log(tmp_path, "cpu", seconds=60)
    log.section("first", 60)
    log.check("works", lambda: same(1.0, 1.0 + 1e-12, 1e-9))
    log.check("differs", lambda: same(1.0, 1.1, 1e-9))
    log.check("fails", fails)
    log.section("second", -1)
    log.check("late", fails)
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["sections"]
    results = [row["result"] for section in rows.values() for row in section]
    assert [result.split(":")[0] for result in results] == ["ok", "DIFFERENT", "FAILED", "skipped"]
    assert "not on this device" in results[2]
    page = (tmp_path / "gpu_check.md").read_text()
    assert "## first" in page
    assert "| works | 1 |" in page


@pytest.mark.slow
def test_perturbations_agree_with_themselves_on_the_cpu(tmp_path: Path) -> None:
    run("cpu", 8, tmp_path, ["perturbations"])
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["sections"]
    (checks,) = rows.values()
    assert len(checks) == 12
    assert {row["result"] for row in checks} == {"ok"}
