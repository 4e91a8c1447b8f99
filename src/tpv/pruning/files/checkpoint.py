"""Saving and loading pruned networks."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.fingerprint import digest
from tpv.pruning.channels.surgery import own_copy
from tpv.pruning.files.architecture import Architecture, describe, rebuild
from tpv.pruning.files.folder import (
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    check_writable,
    identity_of,
    put_pair,
    safetensors,
    weights_of,
)

VERSION = 2


def save(model: nn.Module, folder: str | Path, *, unpruned: nn.Module, overwrite: bool = False) -> None:
    """Write a pruned network to ``folder``: ``model.safetensors`` and ``pruning.json``, which :func:`load`
    reads.

    An earlier network in the folder is replaced in one step: whatever interrupts, one of the two is there.

    Args:
        model: the pruned network.
        folder: made where it is missing.
        unpruned: the network that it was pruned from.
        overwrite: replace files of these names that tpv did not write, too.

    Raises:
        TPVError: for a folder with such files; if nothing can be written there; for weights that safetensors
            refuses.

    Example:
        >>> import tempfile, torch, tpv.pruning
        >>> network = lambda: torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)).eval()
        >>> model, x = network(), torch.randn(3, 2)
        >>> from tpv.integrations.torch_pruning import channel_groups
        >>> from tpv.pruning.channels.surgery import remove
        >>> pruned = remove(model, x, channel_groups(model, x), {"0": [1, 2]})
        >>> folder = tempfile.mkdtemp()
        >>> tpv.pruning.save(pruned, folder, unpruned=model)
        >>> torch.equal(tpv.pruning.load(network(), folder)(x), pruned(x))
        True
    """
    check_writable(Path(folder), WEIGHTS, DESCRIPTION, overwrite=overwrite)
    write(model, Path(folder), Architecture.of(unpruned))


def write(model: nn.Module, folder: Path, unpruned: Architecture) -> None:
    """:func:`save` for a known architecture, into a folder that was checked."""
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    contents = {
        "format": FORMAT,
        "version": VERSION,
        **describe(model, unpruned),
        "weights": digest(*tensors.values(), names=tuple(tensors)),
        "versions": {"tpv": version("tpv"), "torch": torch.__version__},
    }
    put_pair(folder, model, json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False))


def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """The pruned network that :func:`save`, :func:`tpv.prune` or ``tpv prune`` wrote to ``folder``.

    Nothing is unpickled or traced: a copy of ``model`` gets the sizes of the pruned layers, and the weights
    are read into that.

    Args:
        model: a new instance of the unpruned architecture, with any weights; left as it is.
        folder: with ``model.safetensors`` and ``pruning.json``.

    Returns:
        The network in evaluation mode, with the dtypes that were saved and on the device of ``model``.

    Raises:
        TPVError: for files that are missing, broken, foreign or do not belong together, or a model of another
            architecture.

    Cost: no pass of the model.
    """
    folder, pruned = Path(folder), own_copy(model).eval()
    contents = _read(folder)
    weights = weights_of(folder, identity_of(contents))
    with safetensors().safe_open(str(weights), "pt") as file:
        forms = {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118
    try:
        rebuild(pruned, contents, forms)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, TPVError):
            raise
        raise TPVError(f"{folder / DESCRIPTION} is broken ({type(error).__name__}: {error}).") from error
    try:
        safetensors().torch.load_model(pruned, str(weights))
    except Exception as error:
        raise TPVError(
            f"the weights in {folder} do not fit what is left of the model: {' '.join(str(error).split())}"
        ) from error
    return pruned


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        raise TPVError(
            f"there is no {DESCRIPTION} in {folder}: give a folder that tpv.pruning.save or tpv prune has "
            "written."
        )
    try:
        contents = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise TPVError(f"{folder / DESCRIPTION} is broken, it is not JSON: {error}.") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise TPVError(
            f"{folder / DESCRIPTION} does not describe a pruned model: its format is not {FORMAT!r}."
        )
    if contents.get("version") != VERSION:
        raise TPVError(
            f"{folder / DESCRIPTION} has version {contents.get('version')!r}, and this tpv reads version "
            f"{VERSION}."
        )
    return contents
