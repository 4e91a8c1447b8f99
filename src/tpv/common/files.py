"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tpv.common.errors import TPVError


def put(path: Path, fill: Callable[[Path], object], advice: str = "choose another folder") -> None:
    """Make a file in one step, so that an interrupt leaves the old one or the new one.

    Args:
        path: of the file; its folder is made where it is missing.
        fill: writes a file at the path that it gets.
        advice: what to do if it cannot be written.

    Raises:
        TPVError: if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(draft)
        os.replace(draft, path)
    except OSError as error:
        raise TPVError(f"cannot write to {path.parent} ({error.strerror or error}): {advice}.") from error
    finally:
        if draft.exists():
            draft.unlink()


def put_text(path: Path, text: str, advice: str = "choose another folder") -> None:
    """:func:`put` a file with this text."""
    put(path, lambda draft: draft.write_text(text, encoding="utf-8"), advice)
