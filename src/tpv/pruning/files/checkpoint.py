"""Pruned networks on disk: weights, and what was removed from the network that they come from."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.common.files import put, put_text
from tpv.model.linearization import Forward
from tpv.pruning.files.example import structure
from tpv.pruning.files.replay import Recorded, rebuilt, shapes

WEIGHTS, DESCRIPTION = "model.safetensors", "pruning.json"
FORMAT, VERSION = "tpv-pruned-model", 1


@dataclass(frozen=True)
class Origin:
    """What a pruned network comes from.

    Attributes:
        architecture: name → shape of every parameter and buffer of the unpruned network.
        example: the form of the batch that it was traced with; None if that cannot be kept.
    """

    architecture: Mapping[str, Sequence[int]]
    example: Any

    @staticmethod
    def of(unpruned: nn.Module, example: Any) -> Origin:
        """The origin of everything that is pruned from this network."""
        try:
            form = structure(example)
        except TPVError:
            form = None
        return Origin(shapes(unpruned), form)


def save(
    model: nn.Module,
    folder: str | Path,
    history: Sequence[Sequence[Any]],
    example: Any,
    *,
    unpruned: nn.Module,
) -> None:
    """Write a pruned network to ``folder``: ``model.safetensors`` and ``pruning.json``, which :func:`load`
    reads.

    Args:
        model: the pruned network.
        folder: made where it is missing.
        history: what was removed, in Torch-Pruning's form (``DependencyGraph.pruning_history()``,
            :attr:`PruningResult.history`).
        example: the batch that it was traced with; shapes and dtypes are kept.
        unpruned: the network that it was pruned from.

    Raises:
        TPVError: if nothing can be written there, or for weights that safetensors refuses.

    Example:
        >>> import tempfile, torch, tpv.pruning
        >>> network = lambda: torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).eval()
        >>> model, x = network(), torch.randn(3, 2)
        >>> from tpv.integrations.torch_pruning import channel_groups
        >>> from tpv.pruning.channels.surgery import remove
        >>> pruned = remove(model, x, channel_groups(model, x), {"0": [1, 2]})
        >>> folder = tempfile.mkdtemp()
        >>> tpv.pruning.save(pruned.model, folder, pruned.history, x, unpruned=model)
        >>> torch.equal(tpv.pruning.load(network(), folder)(x), pruned.model(x))
        True
    """
    write(model, Path(folder), history, Origin.of(unpruned, example))


def write(model: nn.Module, folder: Path, history: Sequence[Sequence[Any]], origin: Origin) -> None:
    """:func:`save` for a known origin."""
    found = {
        "format": FORMAT,
        "version": VERSION,
        "history": [[name, bool(outputs), [int(i) for i in indices]] for name, outputs, indices in history],
        "added_biases": _added_biases(model, origin),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "example": origin.example,
        "architecture": {name: list(shape) for name, shape in origin.architecture.items()},
        "versions": {"tpv": version("tpv"), "torch": torch.__version__},
    }
    safetensors = _safetensors()
    try:
        put(
            folder / WEIGHTS,
            lambda path: safetensors.torch.save_model(
                model, str(path), metadata={DESCRIPTION: _digest(found)}
            ),
        )
    except (RuntimeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        if isinstance(error, TPVError):
            raise
        raise TPVError(
            f"safetensors cannot write the weights of this model to {folder}: {str(error).splitlines()[0]}"
        ) from error
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    put_text(folder / DESCRIPTION, text + "\n")


def load(
    model: nn.Module, folder: str | Path, *, example: Any = None, forward: Forward | None = None
) -> nn.Module:
    """The pruned network that :func:`save`, :func:`tpv.prune` or ``tpv prune`` wrote to ``folder``.

    Nothing is unpickled: what was removed is removed again from a copy of ``model``, and the weights are read
    into that.

    Args:
        model: a new instance of the unpruned architecture, with any weights; left as it is.
        folder: with ``model.safetensors`` and ``pruning.json``.
        example: a batch to trace the model with; by default zeros in the form of the batch that it was pruned
            with.
        forward: as in :func:`tpv.prune`.

    Returns:
        The network in evaluation mode, with the dtypes that were saved and on the device of ``model``.

    Raises:
        TPVError: for files that are missing, broken, foreign or do not belong together, or a model of another
            architecture.

    Cost: a forward pass, to trace the model.
    """
    recorded = read(Path(folder))
    pruned = rebuilt(copy.deepcopy(model).eval(), recorded, example, forward)
    try:
        _safetensors().torch.load_model(pruned, str(Path(folder) / WEIGHTS))
    except Exception as error:
        raise TPVError(
            f"the weights in {folder} do not fit what is left of the model: {' '.join(str(error).split())}"
        ) from error
    for name, p in pruned.named_parameters():
        p.requires_grad_(name not in recorded.frozen and p.is_floating_point())
    return pruned


def read(folder: Path) -> Recorded:
    """What the files in a folder say, without the weights themselves.

    Raises:
        TPVError: as :func:`load`.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise TPVError(
                f"there is no {name} in {folder}: give a folder that tpv.pruning.save or tpv prune has "
                "written."
            )
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise TPVError(f"{folder / DESCRIPTION} is broken, it is not JSON: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise TPVError(
            f"{folder / DESCRIPTION} does not describe a pruned model: its format is not {FORMAT!r}."
        )
    if found.get("version") != VERSION:
        raise TPVError(
            f"{folder / DESCRIPTION} has version {found.get('version')!r}, and this tpv reads version "
            f"{VERSION}."
        )
    try:
        with _safetensors().safe_open(str(folder / WEIGHTS), "pt") as weights:
            kept = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - no mapping
            metadata = weights.metadata() or {}
    except Exception as error:
        raise TPVError(f"{folder / WEIGHTS} is broken: {error}.") from error
    if metadata.get(DESCRIPTION) != _digest(found):
        raise TPVError(
            f"{WEIGHTS} and {DESCRIPTION} in {folder} do not belong together: save the model again."
        )
    return Recorded.of(found, kept, str(folder / DESCRIPTION))


def _added_biases(model: nn.Module, origin: Origin) -> list[str]:
    """Modules with a bias that they lack in the unpruned network."""
    added = [name.rpartition(".") for name in shapes(model) if name not in origin.architecture]
    return [owner for owner, _, kind in added if kind == "bias"]


def _digest(found: dict[str, Any]) -> str:
    """Of the contents, however they are laid out."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise TPVError("pruned models are kept with safetensors: pip install 'tpv[pruning]'.") from None
    return safetensors
