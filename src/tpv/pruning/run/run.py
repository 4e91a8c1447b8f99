"""The steps of a pruning."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.stats import Estimate
from tpv.model.batches import batch_size, call_model, inputs
from tpv.model.checks import check_device, check_outputs
from tpv.model.linearization import Linearization
from tpv.model.outputs import as_output
from tpv.pruning.channels.surgery import Surgery, kept_outputs, remove
from tpv.pruning.files.checkpoint import Origin
from tpv.pruning.repair.compensation import compensate
from tpv.pruning.repair.recalibration import recalibrate
from tpv.pruning.run.candidates import candidates
from tpv.pruning.run.plan import Plan
from tpv.pruning.run.rescoring import Judge, Values
from tpv.pruning.run.result import PruningResult, PruningStep
from tpv.pruning.run.resume import PruningStore
from tpv.pruning.scores.measurement import Yardstick, predict
from tpv.pruning.widths.budget import budget
from tpv.pruning.widths.curves import Curve, measure_curve
from tpv.pruning.widths.selection import Chosen, by_curves, by_ranking, check_attainable, uniformly

Tell = Callable[[str, int, int], None]
"""(what is being done, parts done, parts)."""


class Run:
    """A plan at work.

    Args:
        plan: what is asked.
        store: what an earlier run has finished, and where this one leaves its own.
        tell: hears of the progress.
    """

    def __init__(self, plan: Plan, store: PruningStore, tell: Tell) -> None:
        self._plan, self._store, self._tell = plan, store, tell
        tell("tracing", 0, plan.steps)
        _check_data(plan)
        found = candidates(plan)
        self._groups, self._excluded = found.groups, found.excluded
        self._both = {
            unit: budget(plan.model, plan.example, self._groups, unit, plan.forward)
            for unit in ("macs", "params")
        }
        self._costs = plan.target.budget(self._groups, self._both, found.everything)
        check_attainable(self._costs, [1] * len(self._groups), plan.target.keep * self._costs.total)
        output = as_output(plan.output)
        self._calibration = Yardstick(plan.model, plan.data, output, plan.forward)
        self._test = Yardstick(plan.model, plan.test, output, plan.forward) if plan.test else None
        self._judge = Judge(plan, self._groups)

    def result(self) -> PruningResult:
        """All steps, those in the store aside."""
        plan, store = self._plan, self._store
        curves = self._curves() if plan.allocation == "curves" else {}
        now = Surgery(plan.model, [])
        if store.steps:
            now = store.model(plan.model, len(store.steps) - 1, example=plan.example, forward=plan.forward)
        for k in range(len(store.steps), plan.steps):
            self._tell("pruning", k, plan.steps)
            step, now = self._step(k, now.model, store.steps[-1].removed if store.steps else {}, curves)
            store.add(step, now, plan.example, plan.model)
        self._tell("pruning", plan.steps, plan.steps)
        origin = Origin.of(plan.model, plan.example)
        return PruningResult(
            now.model, tuple(store.steps), now.history, curves, self._excluded, self._metadata(), origin
        )

    @functools.cached_property
    def _unpruned_values(self) -> Values:
        return self._judge(self._plan.model, {})[0]

    def _curves(self) -> dict[str, Curve]:
        plan, found = self._plan, dict[str, Curve]()
        for group in self._groups:
            curve = plan.curves.get(group.name)
            if curve is not None and not curve.keys() >= {1, group.width}:
                raise TPVError(
                    f"curves= have widths {sorted(curve, key=str)} for {group.name}, which has {group.width} "
                    "channels: give the curves of "
                    "a result for this network, from 1 to all channels."
                )
        for i, group in enumerate(self._groups):
            self._tell("measuring curves", i, len(self._groups))
            curve = plan.curves.get(group.name) or self._store.curve(group.name)
            if curve is None:
                order = self._unpruned_values[group.name].argsort(stable=True)
                curve = measure_curve(
                    plan.model,
                    group,
                    order,
                    plan.data,
                    refit=plan.compensate,
                    output=as_output(plan.output),
                    forward=plan.forward,
                )
                self._store.keep_curve(group.name, curve)
            found[group.name] = curve
        return found

    def _step(
        self, k: int, current: nn.Module, removed: Mapping[str, Sequence[int]], curves: dict[str, Curve]
    ) -> tuple[PruningStep, Surgery]:
        started, plan = time.perf_counter(), self._plan
        keep = 1 - (1 - plan.target.keep) * (k + 1) / plan.steps
        chosen = self._choose(current, removed, curves, keep * self._costs.total)
        foreseen = predict(plan.model, plan.data, self._groups, chosen, plan.output, plan.forward)
        surgery = remove(plan.model, plan.example, self._groups, chosen, plan.forward)
        cut, _ = self._calibration(surgery.model)
        self._restore(surgery.model, chosen, f"re-fitting, step {k + 1} of {plan.steps}")
        moved, _ = self._calibration(surgery.model)
        moved_test, accuracy = self._test(surgery.model) if self._test else (None, None)
        widths = [group.width - len(chosen[group.name]) for group in self._groups]
        macs, params = (self._both[unit].of(widths) for unit in ("macs", "params"))
        step = PruningStep(
            removed=chosen,
            macs=round(macs),
            params=round(params),
            macs_share=macs / self._both["macs"].total,
            params_share=params / self._both["params"].total,
            cost_share=self._costs.of(widths) / self._costs.total,
            predicted=Estimate(foreseen.first_order, foreseen.first_order_stderr, 0.0),
            linearity=foreseen.value,
            cut=cut,
            moved=moved,
            moved_test=moved_test,
            accuracy=accuracy,
            seconds=round(time.perf_counter() - started, 2),
        )
        return step, surgery

    def _choose(
        self, current: nn.Module, removed: Mapping[str, Sequence[int]], curves: dict[str, Curve], limit: float
    ) -> Chosen:
        if self._plan.allocation == "curves":
            return by_curves(self._groups, self._unpruned_values, curves, removed, self._costs, limit)
        values, terms = self._judge(current, removed)
        if self._plan.allocation == "uniform":
            return uniformly(self._groups, values, removed, self._costs, limit)
        return by_ranking(self._groups, values, removed, self._costs, limit, terms)

    def _restore(self, model: nn.Module, removed: Chosen, doing: str) -> None:
        """Re-fit and recalibrate, as far as asked."""
        plan = self._plan
        if plan.compensate:
            kept = kept_outputs(self._groups, removed)
            compensate(
                model,
                plan.model,
                plan.data,
                kept,
                forward=plan.forward,
                progress=lambda done, of: self._tell(doing, done, of),
            )
        if plan.recalibrate:
            recalibrate(model, plan.data, forward=plan.forward)

    def _metadata(self) -> dict[str, Any]:
        plan = self._plan
        accuracy = self._test.unpruned_accuracy if self._test else None
        return {
            "target": repr(plan.target),
            "target_unit": plan.target.unit,
            "criterion": repr(plan.criterion)
            if dataclasses.is_dataclass(plan.criterion)
            else type(plan.criterion).__name__,
            "allocation": plan.allocation,
            "compensate": plan.compensate,
            "recalibrate": plan.recalibrate,
            "seed": plan.generator,
            **({"replaced_shortcuts": list(plan.replaced)} if plan.replaced else {}),
            "output": as_output(plan.output).name,
            "unit": as_output(plan.output).unit,
            "examples": sum(map(batch_size, plan.data)),
            "test_examples": sum(map(batch_size, plan.test or [])),
            "unpruned": {
                "macs": round(self._both["macs"].total),
                "params": round(self._both["params"].total),
                "accuracy": None if accuracy is None else dataclasses.asdict(accuracy),
                "widths": {group.name: group.width for group in self._groups},
            },
            "versions": {
                "tpv": version("tpv"),
                "torch": torch.__version__,
                "torch_pruning": version("torch_pruning"),
                "python": platform.python_version(),
            },
        }


def _check_data(plan: Plan) -> None:
    """Refuse, before any tracing, what cannot be measured; say if some outputs do not count."""
    first = plan.data[0]
    check_device(plan.model, first if plan.forward else inputs(first))
    check_outputs(Linearization(plan.model, plan.forward, as_output("logits")), first)
    if plan.forward is None:
        with torch.no_grad():
            found = call_model(plan.model, plan.example)
        several = (
            [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]
            if isinstance(found, list | tuple)
            else []
        )
        if len(several) > 1:
            warnings.warn(
                f"the model returns {len(several)} tensors, and only the first counts: give forward=, such "
                "as "
                "forward=lambda model, batch: torch.cat([f.flatten(1) for f in model(batch)], 1), if the "
                "others matter.",
                stacklevel=5,
            )
