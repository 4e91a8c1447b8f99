"""Results as JSON (standard JSON, with null for nan) and as flat dictionaries."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.files import put_text
from tpv.common.stats import Estimate

Flat = dict[str, float | int | str]


class JSONResult:
    """A frozen dataclass of numbers that goes to JSON and back unchanged.

    Attributes:
        prefix: what the keys of ``to_dict(flat=True)`` start with.
        derived: properties that ``to_dict(flat=True)`` has besides the fields.
    """

    prefix: ClassVar[str] = "tpv"
    derived: ClassVar[tuple[str, ...]] = ()

    @overload
    def to_dict(self, *, flat: Literal[False] = False) -> dict[str, Any]: ...

    @overload
    def to_dict(self, *, flat: Literal[True]) -> Flat: ...

    def to_dict(self, *, flat: bool = False) -> dict[str, Any]:
        """Plain values: for JSON, or for a logger such as Weights & Biases, TensorBoard or MLflow.

        Args:
            flat: False for nested dictionaries and lists with a ``"type"``, in which nan is None; True for
                one level of numbers and texts under keys such as ``"tpv/value"``,
                ``"tpv/layers/<name>/stderr"`` and ``"tpv/metadata/seed"``, without lists (draws, spectrum)
                and what is None, nan or empty.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        if flat:
            return flattened({self.prefix: fields | {name: getattr(self, name) for name in self.derived}})
        return {"type": type(self).__name__, **{name: plain(value) for name, value in fields.items()}}

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text, written to ``path`` too if one is given, in one step, so that no half file is left."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            put_text(Path(path), text + "\n")
        return text

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            TPVError: if it describes something else.
        """
        if not isinstance(saved, dict) or saved.get("type") != cls.__name__:
            kind = saved.get("type") if isinstance(saved, dict) else type(saved).__name__
            raise TPVError(f"this is not a saved {cls.__name__} but {kind!r}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := saved.keys() - fields.keys() - {"type"}:
            raise TPVError(
                f"a saved {cls.__name__} has no field {sorted(unknown)[0]!r}: it was written by another "
                "version of tpv."
            )
        values = {name: _restored_field(fields[name], saved[name]) for name in fields if name in saved}
        try:
            return cls(**values)
        except TypeError as error:
            raise TPVError(f"this is not a whole saved {cls.__name__}: {error}.") from error

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
        TPVError: if it is not JSON, or if there is no such file.
    """
    is_text = isinstance(source, str) and source.lstrip().startswith("{")
    try:
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        return json.loads(text)
    except ValueError as error:
        raise TPVError(f"this is not JSON: {error}.") from error
    except OSError as error:
        raise TPVError(f"{source} cannot be read ({error.strerror or error}).") from error


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


def flattened(value: Any, key: str = "") -> Flat:
    """Nested dictionaries, results and estimates as one dictionary; keys are joined by "/".

    Example:
        >>> flattened({"tpv": {"value": 1.5, "draws": (1.0, 2.0), "layers": {"0": {"value": 1.5}}}})
        {'tpv/value': 1.5, 'tpv/layers/0/value': 1.5}
    """
    if isinstance(value, int | float | str):
        return {} if value == "" or value != value else {key: value}
    if isinstance(value, JSONResult):
        inner = value.to_dict(flat=True)
        return {f"{key}{name.removeprefix(value.prefix)}": item for name, item in inner.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, dict):
        return {}
    parts = [flattened(item, f"{key}/{name}" if key else str(name)) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _restored_field(field: dataclasses.Field[Any], value: Any) -> Any:
    """Of its annotation; only a field that may be None is None."""
    if field.name == "metadata" or (value is None and "None" in str(field.type)):
        return value
    restored = _restored(value)
    return torch.tensor(restored, dtype=torch.float64) if "Tensor" in str(field.type) else restored


def _restored(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, list):
        return tuple(map(_restored, value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value", "stderr", "mc_stderr"}:
        return Estimate(**{key: _restored(item) for key, item in value.items()})
    if "type" in value:
        kinds = {kind.__name__: kind for kind in JSONResult.__subclasses__()}
        if value["type"] not in kinds:
            raise TPVError(f"this tpv knows no saved {value['type']!r}.")
        return kinds[value["type"]].from_dict(value)
    return {key: _restored(item) for key, item in value.items()}
