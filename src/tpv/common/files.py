"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from tpv.common.errors import TPVError


def put(path: Path, fill: Callable[[Path], object], advice: str = "choose another folder") -> None:
    """Make a file in one step, so that an interrupt leaves the old one or the new one.

    The content goes to a new file of a random name in the same folder, reaches the disk, and then takes the
    place of ``path``; if that is a link, the link is replaced and what it points to stays as it is.

    Args:
        path: of the file; its folder is made where it is missing.
        fill: writes into the empty file at the path that it gets.
        advice: what to do if it cannot be written.

    Raises:
        TPVError: if it cannot be written.
    """
    draft = path.with_name(f".tpv-{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        fill(draft)
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise TPVError(f"cannot write to {path.parent} ({error.strerror or error}): {advice}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def put_text(path: Path, text: str, advice: str = "choose another folder") -> None:
    """:func:`put` a file with this text."""
    put(path, lambda draft: draft.write_text(text, encoding="utf-8"), advice)


def _sync(path: Path) -> None:
    """Wait until the disk has it, where the system can."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
