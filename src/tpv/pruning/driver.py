"""Pruning a network to a budget."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tpv._batches import batch_size, batches, ends
from tpv._errors import TPVError
from tpv._guard import unchanged
from tpv._options import require_choice, require_int
from tpv._stats import Estimate
from tpv.checks import check_model
from tpv.linearization import Forward
from tpv.outputs import as_output
from tpv.pruning.budget import budget
from tpv.pruning.checkpoint import Origin
from tpv.pruning.compensation import compensate as refit
from tpv.pruning.cotangents import Frozen, freeze
from tpv.pruning.criteria import Criterion, TPVImportance
from tpv.pruning.curves import Curve, measure_curve
from tpv.pruning.elimination import Terms
from tpv.pruning.groups import ChannelGroup
from tpv.pruning.measurement import Yardstick, predict
from tpv.pruning.recalibration import recalibrate as recalibrate_norms
from tpv.pruning.result import PruningResult, PruningStep
from tpv.pruning.scoring import score
from tpv.pruning.selection import Chosen, by_curves, by_ranking, uniformly
from tpv.pruning.store import PruningStore, fingerprint
from tpv.pruning.surgery import Surgery, kept_outputs, remaining, remove
from tpv.pruning.target import Target
from tpv.pruning.tracing import all_groups, channel_group, trace
from tpv.pruning.verification import verified

Allocation = Literal["global", "uniform", "curves"]
Importance = Callable[[Any], Tensor]
"""Torch-Pruning's: a group → scores of its root channels."""
Tell = Callable[[str, int, int], None]


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

    Channels are scored, chosen until the target is met (at least one stays in every layer), and removed with everything that
    goes with them, in ``steps`` even steps of cost; each step starts from the unpruned network with the channels that the last
    one left. The model itself is left bit for bit as it was.

    Args:
        model: a trained ``nn.Module`` in evaluation mode.
        data: calibration inputs, as in :func:`tpv.estimate`, a few hundred; they are read once and kept in memory.
        target: the share to keep, ``"macs=0.5"`` or ``"params=0.5"``, or a :class:`tpv.pruning.Target`.
        criterion: by default :class:`tpv.pruning.TPVImportance` with ``interactions``; :class:`tpv.pruning.JBR`,
            :class:`tpv.pruning.JC`, or any importance of Torch-Pruning, a function from a group to scores.
        allocation: ``"global"``, one ranking of all channels; ``"uniform"``, the same share of every group; ``"curves"``, the widths of
            least damage by measured curves E‖Δf‖² of each group (:func:`tpv.pruning.allocate`), in one step by default.
        compensate: re-fit the layers behind removed channels in closed form (:func:`tpv.pruning.compensate`).
        recalibrate: set BatchNorm's running statistics anew on the calibration inputs.
        steps: by default 9, or 1 for ``"curves"``.
        test: inputs that take no part, labelled for the accuracy, ``(inputs, labels)`` or mappings with labels.
        ignore: glob patterns of groups to leave alone, by the name of the layer that makes the channels.
        curves: those of an earlier result, so that another target needs no new measurement.
        out: a folder for the pruned network, the log and what is needed to resume.
        fresh: forget what an interrupted run left in ``out``.
        forward, generator: as in :func:`tpv.estimate`.
        progress: called with (what is being done, parts done, parts) as the work goes on.

    Returns:
        The pruned network, and for each step what was removed, the output change predicted before and measured after, and accuracy.

    Raises:
        TPVError: for a target that cannot be met, a network that Torch-Pruning traces wrongly, and as :func:`tpv.estimate`;
            without Torch-Pruning: ``pip install 'tpv[pruning]'``.

    Cost of a step: :func:`tpv.pruning.score`, four forward passes, one Jacobian-vector product; with ``compensate`` two forward
    passes for each layer; for ``"curves"``, once, some ten forward passes for each group.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> result = tpv.prune(model, torch.randn(64, 8), "params=0.5", steps=2)
        >>> result.model[0], result.steps[-1].params_share <= 0.5
        (Linear(in_features=8, out_features=7, bias=True), True)
    """
    check_model(model)
    with unchanged(model):
        work = _Pruning(
            model, list(batches(data)), Target.parse(target) if isinstance(target, str) else target,
            criterion or TPVImportance(interactions=True), allocation, compensate, recalibrate,
            steps if steps is not None else (1 if allocation == "curves" else 9), None if test is None else list(batches(test)),
            tuple(ignore), curves or {}, forward, generator, progress or (lambda *_: None),
        )  # fmt: skip
        store = PruningStore(None if out is None else Path(out), work.fingerprint(), fresh=fresh)
        result = work.run(store)
        store.finish(result)
    return result


@dataclass
class _Pruning:
    """A run of :func:`prune`, whose arguments these are."""

    model: nn.Module
    data: list[Any]
    target: Target
    criterion: Criterion | Importance
    allocation: Allocation
    compensate: bool
    recalibrate: bool
    steps: int
    test: list[Any] | None
    ignore: tuple[str, ...]
    known_curves: Mapping[str, Curve]
    forward: Forward | None
    generator: int
    progress: Tell
    groups: list[ChannelGroup] = field(init=False)
    excluded: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        require_choice("prune", "allocation", self.allocation, ("global", "uniform", "curves"))
        require_int("prune", "steps", self.steps, 1)
        require_int("prune", "generator", self.generator, 0)
        if isinstance(self.criterion, type) or not (callable(self.criterion) or isinstance(self.criterion, Criterion)):
            raise TPVError(
                f"criterion={self.criterion!r}: give tpv.pruning.TPVImportance(), JBR(), JC() or an importance of Torch-Pruning."
            )
        if not self.data:
            raise TPVError("data is empty: it gave no batch.")
        first = self.data[0]
        self.example = ends(first, batch_size(first))
        self.output = self.criterion.output if isinstance(self.criterion, Criterion) else "logits"

    def fingerprint(self) -> str:
        """Text that changes whenever a result would."""
        asked = (
            self.target,
            self.criterion,
            self.allocation,
            self.compensate,
            self.recalibrate,
            self.steps,
            self.ignore,
            dict(self.known_curves),
            self.generator,
            self.forward,
        )
        return fingerprint(self.model, self.data, self.test, asked)

    def run(self, store: PruningStore) -> PruningResult:
        """All steps, those in the store aside."""
        self.progress("tracing", 0, self.steps)
        self._find_groups()
        self.both = {unit: budget(self.model, self.example, self.groups, unit, self.forward) for unit in ("macs", "params")}
        self.costs = self.target.budget(self.groups, self.both)
        measured = as_output(self.output)
        self.yardsticks = [Yardstick(self.model, part, measured, self.forward) for part in (self.data, self.test) if part]
        self.frozen: Frozen | None = None
        if isinstance(self.criterion, Criterion):
            self.frozen = freeze(self.model, self.data, self.criterion, forward=self.forward)
        curves = self._curves(store) if self.allocation == "curves" else {}
        now = (
            store.model(self.model, len(store.steps) - 1, example=self.example, forward=self.forward)
            if store.steps
            else Surgery(self.model, [])
        )
        for k in range(len(store.steps), self.steps):
            self.progress("pruning", k, self.steps)
            removed = store.steps[-1].removed if store.steps else {}
            step, now = self._step(k, now.model, removed, curves)
            store.add(step, now, self.example, self.model)
        self.progress("pruning", self.steps, self.steps)
        origin = Origin.of(self.model, self.example)
        return PruningResult(now.model, tuple(store.steps), now.history, curves, self.excluded, self._metadata(), origin)

    def _find_groups(self) -> None:
        found = [channel_group(group) for group in all_groups(trace(self.model, self.example, self.forward))]
        for glob in self.ignore:
            if not any(fnmatchcase(group.name, glob) for group in found):
                raise TPVError(f"ignore={glob!r} matches no group of channels: there are {', '.join(group.name for group in found)}.")
        left_out = {g.name: "ignored" for g in found if any(fnmatchcase(g.name, glob) for glob in self.ignore)}
        members = self.criterion.members if isinstance(self.criterion, Criterion) else "consumers"
        usable = []
        for group in found:
            try:
                group.chosen(members)
            except TPVError as error:
                left_out.setdefault(group.name, str(error))
            if group.name not in left_out:
                usable.append(group)
        self.groups, wrong = verified(self.model, self.example, usable, self.forward)
        self.excluded = left_out | wrong
        if not self.groups:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.excluded.items()) or "it has no hidden convolution or linear layer"
            raise TPVError(f"no channel of the model can be removed ({reasons}).")

    def _curves(self, store: PruningStore) -> dict[str, Curve]:
        found: dict[str, Curve] = {}
        values = self._unpruned_values = self._scored(self.model, {})[0]
        for i, group in enumerate(self.groups):
            self.progress("measuring curves", i, len(self.groups))
            curve = self.known_curves.get(group.name) or store.curve(group.name)
            if curve is None:
                order = values[group.name].argsort(stable=True)
                curve = measure_curve(
                    self.model, group, order, self.data, refit=self.compensate, output=as_output(self.output), forward=self.forward
                )
                store.keep_curve(group.name, curve)
            found[group.name] = curve
        return found

    def _step(
        self, k: int, current: nn.Module, removed: Mapping[str, Sequence[int]], curves: dict[str, Curve]
    ) -> tuple[PruningStep, Surgery]:
        started = time.perf_counter()
        keep = 1 - (1 - self.target.keep) * (k + 1) / self.steps
        chosen = self._choose(current, removed, curves, keep * self.costs.total)
        foreseen = predict(self.model, self.data, self.groups, chosen, self.output, self.forward)
        surgery = remove(self.model, self.example, self.groups, chosen, self.forward)
        cut, _ = self.yardsticks[0](surgery.model)
        if self.compensate:
            refit(
                surgery.model, self.model, self.data, kept_outputs(self.groups, chosen), forward=self.forward,
                progress=lambda done, of: self.progress(f"re-fitting, step {k + 1} of {self.steps}", done, of),
            )  # fmt: skip
        if self.recalibrate:
            recalibrate_norms(surgery.model, self.data, forward=self.forward)
        moved = [yardstick(surgery.model) for yardstick in self.yardsticks]
        widths = [group.width - len(chosen[group.name]) for group in self.groups]
        cost = {unit: both.of(widths) for unit, both in self.both.items()}
        step = PruningStep(
            removed=chosen,
            macs=round(cost["macs"]),
            params=round(cost["params"]),
            macs_share=cost["macs"] / self.both["macs"].total,
            params_share=cost["params"] / self.both["params"].total,
            predicted=Estimate(foreseen.first_order, foreseen.first_order_stderr, 0.0),
            linearity=foreseen.value,
            cut=cut,
            moved=moved[0][0],
            moved_test=moved[1][0] if self.test else None,
            accuracy=moved[1][1] if self.test else None,
            seconds=round(time.perf_counter() - started, 2),
        )
        return step, surgery

    def _choose(self, current: nn.Module, removed: Mapping[str, Sequence[int]], curves: dict[str, Curve], limit: float) -> Chosen:
        if self.allocation == "curves":
            return by_curves(self.groups, self._unpruned_values, curves, removed, self.costs, limit)
        values, terms = self._scored(current, removed)
        if self.allocation == "uniform":
            return uniformly(self.groups, values, removed, self.costs, limit)
        return by_ranking(self.groups, values, removed, self.costs, limit, terms)

    def _scored(self, current: nn.Module, removed: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], Terms | None]:
        """Group → the values of the channels that are left, and the terms of criteria with interactions."""
        groups = remaining(self.groups, removed)
        if isinstance(self.criterion, Criterion):
            found = score(current, self.data, groups, self.criterion, frozen=self.frozen, forward=self.forward, generator=self.generator)
            return {name: scores.value for name, scores in found.items()}, found.terms
        return {group.name: values for group, values in zip(groups, self._importances(current, groups), strict=True)}, None

    def _importances(self, current: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
        """By an importance of Torch-Pruning."""
        torch.manual_seed(self.generator)  # for importances that are random; the caller's state is restored
        graph, found = trace(current, self.example, self.forward), []
        for group in groups:
            root = current.get_submodule(group.name)
            everything = list(range(group.width * group.tied))
            whole = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, everything)
            try:
                values = self.criterion(whole)  # type: ignore[operator]
            except Exception as error:
                raise TPVError(
                    f"the criterion failed on {group.name} ({type(error).__name__}: {error}). Importances that need gradients or do not "
                    "know a layer's type cannot be used: give tpv.pruning.TPVImportance()."
                ) from error
            if not isinstance(values, Tensor) or values.numel() != len(everything):
                raise TPVError(
                    f"the criterion gave no score for each of the {len(everything)} channels of {group.name}, but {values!r:.80}."
                )
            found.append(values.detach().double().cpu().reshape(group.tied, group.width).mean(0))
        return found

    def _metadata(self) -> dict[str, Any]:
        accuracy = self.yardsticks[1](self.model)[1] if self.test else None
        return {
            "target": repr(self.target),
            "criterion": repr(self.criterion) if dataclasses.is_dataclass(self.criterion) else type(self.criterion).__name__,
            "allocation": self.allocation,
            "compensate": self.compensate,
            "recalibrate": self.recalibrate,
            "seed": self.generator,
            "output": as_output(self.output).name,
            "unit": as_output(self.output).unit,
            "examples": sum(map(batch_size, self.data)),
            "test_examples": sum(map(batch_size, self.test or [])),
            "unpruned": {
                "macs": round(self.both["macs"].total),
                "params": round(self.both["params"].total),
                "accuracy": None if accuracy is None else dataclasses.asdict(accuracy),
                "widths": {group.name: group.width for group in self.groups},
            },
            "versions": {
                "tpv": version("tpv"),
                "torch": torch.__version__,
                "torch_pruning": version("torch_pruning"),
                "python": platform.python_version(),
            },
        }  # fmt: skip
