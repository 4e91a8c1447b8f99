"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tpv._errors import TPVError


def put(path: Path, fill: Callable[[Path], object]) -> None:
    """Make a file in one step, so that an interrupt leaves the old one or the new one.

    Args:
        path: of the file; its folder is made where it is missing.
        fill: writes a file at the path that it gets.

    Raises:
        TPVError: if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(draft)
        os.replace(draft, path)
    except OSError as error:
        raise TPVError(f"cannot write to {path.parent} ({error.strerror or error}): choose another folder.") from error
    finally:
        if draft.exists():
            draft.unlink()
