"""Finished work by key, in memory and in files, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError
from tpv.common.files import put, put_text
from tpv.common.fingerprint import fingerprint
from tpv.common.warn import warn

_MEMORY_BYTES = 2**30


class ResumableStore:
    """Entries by key, each in a file of its own that is whole or not there: several runs may share a folder.

    Entries are plain data (numbers, texts, None, lists, dictionaries), saved as JSON, or such data with
    tensors in it, saved by ``torch.save`` and read with ``weights_only=True``. Up to 1 GiB of tensors stays
    in memory. A file that cannot be read counts as missing, with one warning that names it.

    Args:
        folder: where the files go; None for memory, and a temporary folder for what does not fit there.
        identity: the fingerprint of everything that the entries depend on; those of others are not seen.
        name: what file names start with.
        advice: what to do if nothing can be written in the folder.
        remedy: what to do about files that cannot be read.

    Example:
        >>> store = ResumableStore(None, fingerprint("settings"))
        >>> store.put("first part", {"value": 1.5})
        >>> store.get("first part"), store.get("second part")
        ({'value': 1.5}, None)
    """

    def __init__(
        self,
        folder: str | Path | None,
        identity: str,
        *,
        name: str = "unfinished",
        advice: str = "choose another folder",
        remedy: str = "delete the file if this happens again",
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity, self._prefix, self._advice = identity, f"{name}-{identity[:12]}", advice
        self._remedy = remedy
        self._entries: dict[str, Any] = {}
        self._bytes = 0
        self._unreadable: set[Path] = set()

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
                raise TPVError(
                    f"cannot write to {self._folder} ({error.strerror or error}): {self._advice}."
                ) from error

    def get(self, key: str) -> Any | None:
        """A finished entry, None if there is none or its file cannot be read."""
        if key in self._entries:
            return self._entries[key]
        for path in self._paths(key):
            if path.exists() and path not in self._unreadable:
                entry = self._read(path, key)
                if entry is not None:
                    self._remember(key, entry)
                return entry
        return None

    def put(self, key: str, entry: Any) -> None:
        """Keep an entry; with a folder it is on disk before this returns.

        Raises:
            TPVError: if its file cannot be written.
        """
        fits = self._remember(key, entry)
        if self._folder is None and not fits:
            self._folder = Path(tempfile.mkdtemp(prefix="tpv-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        if self._folder is not None:
            self._unreadable -= set(self._paths(key))
            content = {"identity": self._identity, "key": key, "entry": entry}
            plain, binary = self._paths(key)
            if any(True for _ in _tensors(entry)):
                put(binary, lambda draft: torch.save(content, draft), self._advice)
            else:
                put_text(plain, json.dumps(content, ensure_ascii=False), self._advice)

    def __len__(self) -> int:
        """How many entries there are, in memory or on disk."""
        return len({path.stem for path in self._files()} | {self._stem(key) for key in self._entries})

    def discard(self) -> None:
        """Forget all entries, those on disk too."""
        self._entries, self._bytes = {}, 0
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob(f"{self._prefix}-*.*"))

    def _stem(self, key: str) -> str:
        return f"{self._prefix}-{fingerprint(key)[:16]}"

    def _paths(self, key: str) -> tuple[Path, ...]:
        """Where an entry is: as JSON, or with tensors."""
        if self._folder is None:
            return ()
        return tuple(self._folder / f"{self._stem(key)}.{ending}" for ending in ("json", "pt"))

    def _read(self, path: Path, key: str) -> Any | None:
        try:
            content = (
                json.loads(path.read_text(encoding="utf-8"))
                if path.suffix == ".json"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
            owner, entry = (content["identity"], content["key"]), content["entry"]
            return entry if owner == (self._identity, key) else None
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            self._unreadable.add(path)
            reason = str(error).partition("\n")[0] or type(error).__name__
            warn(f"{path} cannot be read ({reason}), so its part is computed again: {self._remedy}.")
            return None

    def _remember(self, key: str, entry: Any) -> bool:
        size = sum(t.numel() * t.element_size() for t in _tensors(entry))
        fits = self._bytes + size <= _MEMORY_BYTES
        if fits:
            self._entries[key] = entry
            self._bytes += size
        return fits


def _tensors(entry: Any) -> Iterator[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, Mapping | list | tuple):
        for part in entry.values() if isinstance(entry, Mapping) else entry:
            yield from _tensors(part)
