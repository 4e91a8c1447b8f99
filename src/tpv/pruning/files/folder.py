"""The files in the folder of a pruned network: whose they are, and how they are replaced."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from tpv.common.errors import TPVError
from tpv.common.files import put, put_text

WEIGHTS, DESCRIPTION, LOG, PLOT = "model.safetensors", "pruning.json", "log.json", "pruning.svg"
FORMAT = "tpv-pruned-model"
TITLE = "tpv prune"
"""In the metadata of the plot."""


def check_writable(folder: Path, *names: str, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or has foreign files of these names (but to overwrite)."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "Permission denied" if nearest.is_dir() else "Not a directory"
        raise TPVError(f"cannot write to {folder} ({why}): choose another folder.")
    foreign = [name for name in names if (folder / name).exists() and not _is_own(folder / name)]
    if foreign and not overwrite:
        raise TPVError(
            f"{folder} has {' and '.join(foreign)} that tpv did not write: choose another folder, or give "
            "overwrite=True to replace them."
        )


def _is_own(path: Path) -> bool:
    """Whether tpv wrote it."""
    try:
        if path.suffix == ".safetensors":
            return _identity_in(path) is not None
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".svg":
            return f">{TITLE}<" in text
        contents = json.loads(text)
        return bool(contents.get("format") == FORMAT or contents.get("type") == "PruningResult")
    except Exception:  # safetensors raises kinds of its own; whatever cannot be read is not ours
        return False


def put_pair(folder: Path, model: nn.Module, description: str) -> None:
    """Replace the weights and the description, which is JSON, together.

    The new weights come first, under a name of their own; the description is the switch; then the weights
    take the place of the old ones. :func:`weights_of` finds those that belong to the description at any time.
    """
    identity, library = identity_of(json.loads(description)), safetensors()
    new = folder / _name(identity)

    def write(path: Path) -> None:
        library.torch.save_model(model, str(path), metadata={DESCRIPTION: identity})

    try:
        put(new, write)
    except (RuntimeError, ValueError, AttributeError, library.SafetensorError) as error:
        if isinstance(error, TPVError):
            raise
        raise TPVError(
            f"safetensors cannot write the weights of this model to {folder}: {str(error).splitlines()[0]}"
        ) from error
    previous = None
    with suppress(OSError, ValueError):  # where a kill kept the weights of the last description
        last = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        previous = folder / _name(identity_of(last))
    put_text(folder / DESCRIPTION, description + "\n")
    os.replace(new, folder / WEIGHTS)
    if previous is not None and previous != new:
        previous.unlink(missing_ok=True)


def identity_of(contents: Any) -> str:
    """A hash of a description's contents, however they are laid out."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def weights_of(folder: Path, identity: str) -> Path:
    """The file with the weights of a description."""
    candidates = [path for path in (folder / _name(identity), folder / WEIGHTS) if path.is_file()]
    if not candidates:
        raise TPVError(
            f"there is no {WEIGHTS} in {folder}: give a folder that tpv.pruning.save or tpv prune wrote."
        )
    for path in candidates:
        try:
            if _identity_in(path) == identity:
                return path
        except Exception as error:
            raise TPVError(f"{path} is broken: {error}.") from error
    raise TPVError(f"{WEIGHTS} and {DESCRIPTION} in {folder} do not belong together: save the model again.")


def _name(identity: str) -> str:
    return f"model-{identity[:12]}.safetensors"


def _identity_in(path: Path) -> str | None:
    """Which description the weights in a file belong to; None for weights of other programs."""
    with safetensors().safe_open(str(path), "pt") as file:
        identity: str | None = (file.metadata() or {}).get(DESCRIPTION)
    return identity


def safetensors() -> Any:
    """The library."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise TPVError("pruned models are saved with safetensors: pip install 'tpv[pruning]'.") from None
    return safetensors
