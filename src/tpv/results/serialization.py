"""Results as JSON: standard JSON, with null for nan."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate

_OPTIONAL = ("moved_test", "accuracy", "no_layers", "spectrum", "cross_fitted", "test_of_halves", "pointwise")


class JSONResult:
    """A frozen dataclass of numbers that goes to JSON and back unchanged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, with a ``"type"``; nan becomes None."""
        fields = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"type": type(self).__name__, **fields}

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text, written to ``path`` too if one is given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            TPVError: if it describes something else.
        """
        if not isinstance(found, dict) or found.get("type") != cls.__name__:
            kind = found.get("type") if isinstance(found, dict) else type(found).__name__
            raise TPVError(f"this is not a saved {cls.__name__} but {kind!r}.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := found.keys() - known - {"type"}:
            raise TPVError(
                f"a saved {cls.__name__} has no field {sorted(unknown)[0]!r}: it was written by another "
                "version of tpv."
            )
        return cls(**{name: _restored(name, value) for name, value in found.items() if name != "type"})

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """A result from JSON text, or from a file (a ``Path``, or a string that does not start with "{").

        Raises:
            TPVError: if it is not one.
        """
        return cls.from_dict(read_json(source))


def read_json(source: str | Path) -> Any:
    """What JSON text holds, or a file (a ``Path``, or a string that does not start with "{").

    Raises:
        TPVError: if it is not JSON.
    """
    text = (
        source
        if isinstance(source, str) and source.lstrip().startswith("{")
        else Path(source).read_text(encoding="utf-8")
    )
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TPVError(f"this is not JSON: {error}.") from error


def plain(value: Any) -> Any:
    """Results, estimates and containers as plain JSON values; what is not finite becomes None."""
    if isinstance(value, JSONResult):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _restored(name: str, value: Any) -> Any:
    if name == "metadata":
        return value
    if value is None and name not in _OPTIONAL:
        return math.nan
    if isinstance(value, list) and name == "pointwise":
        return torch.tensor([math.nan if item is None else item for item in value], dtype=torch.float64)
    if isinstance(value, list):
        return tuple(_restored("", item) for item in value)
    if isinstance(value, dict) and value.keys() == {"value", "stderr", "mc_stderr"}:
        return Estimate(**{key: _restored(key, item) for key, item in value.items()})
    if isinstance(value, dict) and "type" in value:
        import tpv.results

        return getattr(tpv.results, value["type"]).from_dict(value)
    if isinstance(value, dict):
        return {key: _restored(key, item) for key, item in value.items()}
    return value
