"""Finished runs, kept in memory and on disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError

_MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class Finished:
    """What a run leaves behind: δ = w − w*, its mean squared error against its targets before and after, and
    its seconds.
    """

    delta: dict[str, Tensor]
    mse_before: float
    mse_after: float
    seconds: float

    @property
    def bytes(self) -> int:
        """Size of δ."""
        return sum(d.numel() * d.element_size() for d in self.delta.values())


class Store:
    """Finished runs by key: in memory up to 1 GiB, beyond that in files; with a folder, all of them in files
    too.

    Args:
        folder: where files outlive the process; None for a temporary one where memory does not suffice.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._kept: dict[str, Finished] = {}
        self._bytes = 0
        self._folder = None if folder is None else Path(folder)
        self._overflow: Path | None = None

    def prepare(self) -> None:
        """Make the folder, before any work is done for it.

        Raises:
            TPVError: if nothing can be written there.
        """
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self._folder):
                    pass
            except OSError as error:
                raise _unwritable(self._folder, error) from error

    def get(self, key: str) -> Finished | None:
        """A finished run; a file that is broken, or not of this key, counts as missing."""
        if key in self._kept:
            return self._kept[key]
        path = self._path(key)
        saved = None if path is None else _read(path, key)
        if saved is not None:
            self._keep(key, saved)
        return saved

    def put(self, key: str, finished: Finished) -> None:
        """Keep a run; with a folder it is on disk before this returns."""
        fits = self._keep(key, finished)
        if not fits and self._folder is None and self._overflow is None:
            self._overflow = Path(tempfile.mkdtemp(prefix="tpv-"))
            weakref.finalize(self, shutil.rmtree, self._overflow, ignore_errors=True)
        path = self._path(key)
        if path is not None and not (fits and self._folder is None):
            _write(path, key, finished)

    def _keep(self, key: str, finished: Finished) -> bool:
        fits = self._bytes + finished.bytes <= _MEMORY_BYTES
        if fits:
            self._kept[key] = finished
            self._bytes += finished.bytes
        return fits

    def _path(self, key: str) -> Path | None:
        folder = self._folder or self._overflow
        return folder / f"run-{key[:16]}.pt" if folder else None


def _write(path: Path, key: str, finished: Finished) -> None:
    """In one step, so that an interrupt leaves the whole file or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(
            {"key": key, **{f.name: getattr(finished, f.name) for f in dataclasses.fields(finished)}}, draft
        )
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        raise _unwritable(path.parent, error) from error
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Finished | None:
    try:
        fields: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return Finished(**fields) if fields.pop("key") == key else None
    except Exception:  # whatever is wrong with the file, the run can be done again
        return None


def _unwritable(folder: Path, error: Exception) -> TPVError:
    reason = getattr(error, "strerror", None) or "the file could not be finished"
    return TPVError(
        f"Retraining(folder={str(folder)!r}): nothing can be written there ({reason}); choose another folder."
    )
