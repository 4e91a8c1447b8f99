"""Results written as they come, so that a run that is cut off still counts."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Fields = dict[str, Any]


class Log:
    """Rows of results by section, in ``gpu_check.json`` and ``gpu_check.md`` after each.

    Args:
        out: the folder.
        device: "cuda" or "cpu".
        seconds: of the whole run; later checks are skipped.
    """

    def __init__(self, out: Path, device: str, seconds: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.device, self.started = out, device, time.perf_counter()
        self.end = self.section_end = self.started + seconds
        self.sections: dict[str, list[Fields]] = {}
        self.machine = _machine(device)
        self._write()

    def section(self, name: str, seconds: float) -> None:
        """What follows belongs to ``name`` and starts no check after ``seconds``."""
        self.name, now = name, time.perf_counter()
        self.sections.setdefault(name, [])
        self.section_end = min(self.end, now + seconds)
        print(f"== {name} ({now - self.started:.0f} s)", flush=True)

    @property
    def late(self) -> bool:
        """Whether no check starts any more in this section."""
        return time.perf_counter() > self.section_end

    def check(self, name: str, run: Callable[[], Fields]) -> None:
        """Run a check and write its fields, or how it failed."""
        start = time.perf_counter()
        if self.late:
            self._add({"check": name, "result": "skipped: no time left"})
            return
        try:
            fields = run()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            fields = {"result": f"FAILED: {type(error).__name__}: {str(error)[:300]} ({where})"}
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()
        self._add({"check": name, **fields, "seconds": round(time.perf_counter() - start, 2)})

    def _add(self, row: Fields) -> None:
        self.sections[self.name].append(row)
        print("  " + "; ".join(f"{key} {_text(value)}" for key, value in row.items()), flush=True)
        self._write()

    def _write(self) -> None:
        document = {"machine": self.machine, "sections": self.sections}
        (self.out / "gpu_check.json").write_text(
            json.dumps(document, indent=1, default=str), encoding="utf-8"
        )
        (self.out / "gpu_check.md").write_text(self._page(), encoding="utf-8")

    def _page(self) -> str:
        parts = [f"# tpv on {self.machine['device']}", ", ".join(f"{k} {v}" for k, v in self.machine.items())]
        for name, rows in self.sections.items():
            parts += [f"## {name}", _table(rows)]
        return "\n\n".join(parts) + "\n"


def same(found: float, expected: float, tolerance: float) -> Fields:
    """Two values, and whether they agree."""
    gap = abs(found - expected) / max(abs(expected), 1e-300)
    return {"value": found, "relative difference": gap, "result": "ok" if gap <= tolerance else "DIFFERENT"}


def _machine(device: str) -> Fields:
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "GiB": round(torch.cuda.mem_get_info()[1] / 2**30) if cuda else None,
    }


def _table(rows: list[Fields]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (_text(row.get(c, "")).replace("|", "/").replace("\n", " ") for c in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
