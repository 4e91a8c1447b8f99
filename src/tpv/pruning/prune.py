"""Pruning a network to a budget."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tpv.model.batches import batch_size, batches, ends
from tpv.model.checks import check_model
from tpv.model.guard import unchanged
from tpv.model.linearization import Forward
from tpv.pruning.channels.shortcuts import replace_padding_shortcuts
from tpv.pruning.run.plan import Allocation, Importance, Plan
from tpv.pruning.run.result import PruningResult
from tpv.pruning.run.resume import PruningStore
from tpv.pruning.run.run import Run, Tell
from tpv.pruning.scores.criteria import Criterion, TPVImportance
from tpv.pruning.widths.curves import Curve
from tpv.pruning.widths.target import Target


def prune(
    model: nn.Module,
    data: object,
    target: str | Target = "macs=0.5",
    *,
    criterion: Criterion | Importance | None = None,
    allocation: Allocation = "global",
    compensate: bool = False,
    recalibrate: bool = False,
    steps: int | None = None,
    test: object = None,
    ignore: Collection[str] = (),
    curves: Mapping[str, Curve] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    forward: Forward | None = None,
    generator: int = 0,
    progress: Tell | None = None,
) -> PruningResult:
    r"""A smaller copy of a trained network, from unlabelled inputs and without training.

    Channels are scored, chosen until the target is met (at least one stays in every layer), and removed with
    everything that goes with them, in ``steps`` even steps of cost; each step starts from the unpruned
    network with the channels that the last one left. Padding shortcuts, which Torch-Pruning cannot follow,
    become the convolutions that compute the same (:func:`tpv.pruning.replace_padding_shortcuts`). The model
    itself is left bit for bit as it was.

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
        compensate: re-fit the layers behind removed channels in closed form (:func:`tpv.pruning.compensate`).
        recalibrate: set BatchNorm's running statistics anew on the calibration inputs.
        steps: by default 9, or 1 for ``"curves"``.
        test: inputs that take no part, labelled for the accuracy, ``(inputs, labels)`` or mappings with
            labels.
        ignore: glob patterns of groups to leave alone, by the name of the layer that makes the channels.
        curves: those of an earlier result (:attr:`PruningResult.curves`), so that another target needs no new
            measurement.
        out: a folder for the pruned network, the log and what is needed to resume.
        fresh: forget what an interrupted run left in ``out``.
        forward, generator: as in :func:`tpv.estimate`.
        progress: called with (what is being done, parts done, parts) as the work goes on.

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
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> result = tpv.prune(model, torch.randn(64, 8), "params=0.5", steps=2)
        >>> result.model[0], result.steps[-1].params_share <= 0.5
        (Linear(in_features=8, out_features=7, bias=True), True)
    """
    check_model(model)
    with unchanged(model):
        parts = list(batches(data))
        traceable, replaced = _traceable(model, parts, forward)
        plan = Plan(
            model=traceable,
            data=parts,
            test=None if test is None else list(batches(test)),
            target=Target.parse(target) if isinstance(target, str) else target,
            criterion=criterion or TPVImportance(interactions=True),
            allocation=allocation,
            compensate=compensate,
            recalibrate=recalibrate,
            steps=steps if steps is not None else (1 if allocation == "curves" else 9),
            ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
            curves=curves or {},
            forward=forward,
            generator=generator,
            replaced=replaced,
        )
        store = PruningStore(None if out is None else Path(out), plan.fingerprint(), fresh=fresh)
        try:
            result = Run(plan, store, progress or (lambda *_: None)).result()
        except BaseException:
            store.discard_if_empty()
            raise
        store.finish(result)
    return result


def _traceable(
    model: nn.Module, data: list[Any], forward: Forward | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, or a copy with convolutions for its padding shortcuts, and the names of these."""
    if not data:
        return model, ()
    copied = copy.deepcopy(model)
    replaced = replace_padding_shortcuts(copied, ends(data[0], batch_size(data[0])), forward=forward)
    return (copied, tuple(replaced)) if replaced else (model, ())
