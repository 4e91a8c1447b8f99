"""Pruning a network to a budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.progress import Listener, Progress
from tpv.model.batches import batches
from tpv.model.checks import check_model
from tpv.model.linearization import Forward
from tpv.model.twin import twin_of
from tpv.pruning.files.architecture import Architecture
from tpv.pruning.files.folder import DESCRIPTION, LOG, WEIGHTS, check_writable
from tpv.pruning.loop import PruningLoop
from tpv.pruning.result import PruningResult
from tpv.pruning.scores.criteria import Criterion, TPVImportance
from tpv.pruning.task import PruningConfig, PruningTask, Strategy
from tpv.pruning.widths.budget import Target

_TEST_BATCH = 256


def prune(
    model: nn.Module,
    data: object,
    target: str | Target = "macs=0.5",
    *,
    criterion: Criterion | Callable[[Any], Tensor] | None = None,
    allocation: Strategy = "global",
    compensate: bool = False,
    test: object = None,
    forward: Forward | None = None,
    progress: bool | Listener = False,
    config: PruningConfig | None = None,
) -> PruningResult:
    r"""A smaller copy of a trained network, from unlabelled inputs and without training.

    Channels are scored, selected until the target is met (at least one stays in every layer), and removed
    with everything that depends on them, in even steps of cost; each step starts from the unpruned network
    with the channels that the last one left. Padding shortcuts, which Torch-Pruning cannot follow, become the
    convolutions that compute the same (:func:`tpv.pruning.replace_padding_shortcuts`). The model itself is
    left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode.
        data: calibration inputs, as in :func:`tpv.estimate`, a few hundred; they are read once and kept in
            memory.
        target: the share to keep, ``"macs=0.5"`` or ``"params=0.5"``, or a :class:`tpv.pruning.Target`.
        criterion: by default :class:`tpv.pruning.TPVImportance` with ``interactions``, which count in the one
            ranking of ``"global"`` only; :class:`tpv.pruning.JBR`, :class:`tpv.pruning.JC`, or any importance
            of Torch-Pruning, a function from a group to scores.
        allocation: ``"global"``, one ranking of all channels; ``"uniform"``, the same share of every group;
            ``"curves"``, the widths of least damage by measured curves E‖Δf‖² of each group
            (:func:`tpv.pruning.allocate`), in one step by default.
        compensate: re-fit the layers behind removed channels by least squares
            (:func:`tpv.pruning.compensate`).
        test: held-out inputs; labelled for the accuracy: two tensors ``(inputs, labels)``, or batches of such
            pairs or of mappings with labels.
        forward: as in :func:`tpv.estimate`.
        progress: True for a bar on standard error, or a function that gets each :class:`tpv.ProgressEvent`.
        config: steps, groups to ignore, a folder for the result and other rarer options.

    Returns:
        The pruned network, and for each step what was removed, the output change predicted before and
        measured after, and accuracy.

    Raises:
        TPVError: for a target that cannot be met, a network that Torch-Pruning traces wrongly, and as
            :func:`tpv.estimate`; without Torch-Pruning: ``pip install 'tpv[pruning]'``.

    Cost of a step: :func:`tpv.pruning.score`, four forward passes, one Jacobian-vector product; with
    ``compensate`` two forward passes for each layer; for ``"curves"``, once, some ten forward passes for each
    group.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)).eval()
        >>> config = tpv.pruning.PruningConfig(steps=2)
        >>> result = tpv.prune(model, torch.randn(64, 8), "params=0.5", config=config)
        >>> result.model[0], result.steps[-1].params_share <= 0.5
        (Linear(in_features=8, out_features=7, bias=True), True)
    """
    check_model(model)
    config = PruningConfig() if config is None else config
    if not isinstance(config, PruningConfig):
        raise TPVError(f"config={config!r}: give a tpv.pruning.PruningConfig(...).")
    if config.out is not None:
        check_writable(Path(config.out), WEIGHTS, DESCRIPTION, LOG, overwrite=config.overwrite)
    with twin_of(model, forward) as (twin, remapped):
        parts = list(batches(data))
        task = PruningTask(
            model=twin,
            data=parts,
            test=None if test is None else _test_batches(test),
            target=Target.parse(target) if isinstance(target, str) else target,
            criterion=criterion or TPVImportance(interactions=True),
            allocation=allocation,
            compensate=compensate,
            forward=remapped,
            config=config,
        )
        with Progress.of(progress).stage("pruning", total=task.steps) as bar:
            result = PruningLoop(task, Architecture.of(model), bar).run()
    if config.out is not None:
        result.save(config.out, overwrite=True)
    return result


def _test_batches(test: object) -> list[Any]:
    if isinstance(test, tuple) and len(test) == 2 and all(isinstance(t, Tensor) and t.ndim for t in test):
        examples, labels = map(len, test)
        if examples != labels:
            raise TPVError(f"test=(inputs, labels) has {examples} inputs and {labels} labels.")
        return list(zip(*(part.split(_TEST_BATCH) for part in test), strict=True))
    try:
        return list(batches(test))
    except TPVError as error:
        raise TPVError(f"test=: {error}") from None
