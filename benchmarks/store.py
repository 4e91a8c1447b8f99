"""``results.json``: sections by network and device, and the scaling; a new run of a part replaces it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.label_noise import NAME
from benchmarks.scaling import AXES
from benchmarks.subjects import SPECS

PATH = Path(__file__).parent / "results.json"
Document = dict[str, list[dict[str, Any]]]


def read() -> Document:
    return (
        json.loads(PATH.read_text()) if PATH.exists() else {"sections": [], "scaling": [], "label_noise": []}
    )


def add(kind: str, entry: dict[str, Any]) -> Document:
    """Add a section or an axis, replacing the one with its name and device."""
    document = read()
    others = [e for e in document.get(kind, []) if _identity(e) != _identity(entry)]
    document[kind] = sorted([*others, entry], key=_order)
    PATH.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return document


def _identity(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["subject" if "subject" in entry else "axis"], entry["device"]


def _order(entry: dict[str, Any]) -> tuple[str, int]:
    names = [*SPECS, NAME, *(axis.name for axis in AXES)]
    return entry["device"], names.index(_identity(entry)[0])
