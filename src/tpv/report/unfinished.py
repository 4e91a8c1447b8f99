"""What an interrupted report has finished, kept so that the same command resumes."""

from __future__ import annotations

import hashlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path

import torch

from tpv.cli.target import Target
from tpv.common.files import put_text
from tpv.common.fingerprint import digest, weights_digest
from tpv.model.batches import batches, count_examples, tensors
from tpv.perturbations import PerturbationSpec
from tpv.report.contents import Entry


class Unfinished:
    """Finished entries in a file of their own, one file for each fingerprint of the arguments.

    Args:
        folder: where the report goes.
        fingerprint: text that changes whenever a number would.
        fresh: forget what an earlier run left.

    Raises:
        TPVError: if nothing can be written there.
    """

    def __init__(self, folder: Path, fingerprint: str, *, fresh: bool) -> None:
        self._path = folder / f"unfinished-{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}.json"
        self._entries: dict[str, Entry] = {}
        if not fresh and self._path.exists():
            self._entries = _read(self._path)
        self._save()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """A finished entry."""
        return self._entries.get(key)

    def add(self, key: str, entry: Entry) -> None:
        """Keep an entry, on disk before this returns."""
        self._entries[key] = entry
        self._save()

    def discard(self) -> None:
        """The report is written: nothing is unfinished."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        text = json.dumps({key: entry.to_dict() for key, entry in self._entries.items()}, allow_nan=False)
        write(self._path, text)


def write(path: Path, text: str) -> None:
    """Write a file in one step, so that an interrupt leaves the old one or the new one.

    Raises:
        TPVError: if it cannot be written.
    """
    put_text(path, text, "choose another folder with --out")


def _read(path: Path) -> dict[str, Entry]:
    try:
        return {
            key: Entry.from_dict(found) for key, found in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def fingerprint(target: Target, *arguments: object) -> str:
    """The weights, the target's file and first batches, the arguments and the versions, as text."""
    data = [_start(data) for data in (target.train, target.test) if data is not None]
    return repr(
        (weights_digest(target.model), target.digest, data, arguments, version("tpv"), torch.__version__)
    )


def _start(data: object) -> tuple[int | None, str]:
    """How many examples there are, and a hash of the first batch; the global random numbers stay where they
    were.
    """
    found = batches(data)
    with torch.random.fork_rng(devices=[]):
        return count_examples(found), digest(*tensors(next(iter(found), None)))


def entry_key(perturbation: PerturbationSpec) -> str:
    """The perturbation's text and, for a class of the user's own, a hash of the file that defines it."""
    module = inspect.getmodule(type(perturbation))
    file = getattr(module, "__file__", None)
    if file is None or type(perturbation).__module__.startswith("tpv."):
        return repr(perturbation)
    return f"{perturbation!r} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"
