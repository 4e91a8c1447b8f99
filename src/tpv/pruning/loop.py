"""The steps of a pruning."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.progress import Progress
from tpv.common.stats import Estimate
from tpv.common.warn import warn
from tpv.model.batches import batch_size, call_model, inputs
from tpv.model.checks import check_device, check_outputs
from tpv.model.linearization import Linearization
from tpv.model.outputs import as_output
from tpv.model.shortcuts import replace_padding_shortcuts
from tpv.pruning.channels.candidates import candidates
from tpv.pruning.channels.surgery import Removed, kept_outputs, remove
from tpv.pruning.files.architecture import Architecture
from tpv.pruning.repair.compensation import compensate
from tpv.pruning.repair.curves import measure_curve
from tpv.pruning.repair.recalibration import recalibrate
from tpv.pruning.rescoring import Rescorer
from tpv.pruning.result import PruningResult
from tpv.pruning.scores.measurement import OutputChangeMeter, predict
from tpv.pruning.step import PruningStep
from tpv.pruning.task import PruningTask
from tpv.pruning.widths.budget import budget
from tpv.pruning.widths.selection import Curve, by_curves, by_ranking, check_attainable, uniformly


class PruningLoop:
    """A task at work; ``unpruned`` is the architecture of the user's model."""

    def __init__(self, task: PruningTask, unpruned: Architecture, progress: Progress) -> None:
        self._task, self._unpruned, self._progress = task, unpruned, progress
        self._output = as_output(task.output)
        ignore = (task.config.ignore,) if isinstance(task.config.ignore, str) else tuple(task.config.ignore)
        _check_data(task)
        self._replaced = replace_padding_shortcuts(task.model, task.example, forward=task.forward)
        with progress.stage("tracing"):
            self._groups, everything, self._excluded = candidates(
                task.model, task.example, ignore, task.parameters, task.forward
            )
        self._macs = budget(task.model, task.example, self._groups, "macs", task.forward)
        self._params = budget(task.model, task.example, self._groups, "params", task.forward)
        known = {"macs": self._macs, "params": self._params}
        self._costs = task.target.budget(self._groups, known, everything)
        check_attainable(self._costs, [1] * len(self._groups), task.target.keep * self._costs.total)
        meter = functools.partial(OutputChangeMeter, task.model, output=self._output, forward=task.forward)
        self._calibration, self._test = meter(task.data), meter(task.test) if task.test else None
        self._rescorer = Rescorer(task, self._groups)

    def run(self) -> PruningResult:
        """All steps."""
        task, model, steps = self._task, self._task.model, list[PruningStep]()
        curves = self._curves() if task.allocation == "curves" else {}
        for k in range(task.steps):
            step, model = self._step(k, model, steps[-1].removed if steps else {}, curves)
            steps.append(step)
            self._progress.advance()
        return PruningResult(model, tuple(steps), curves, self._excluded, self._metadata(), self._unpruned)

    @functools.cached_property
    def _unpruned_values(self) -> dict[str, Tensor]:
        return self._rescorer(self._task.model, {})[0]

    def _curves(self) -> dict[str, Curve]:
        task, known = self._task, self._task.config.curves
        for group in self._groups:
            curve = known.get(group.name)
            if curve is not None and not curve.keys() >= {1, group.width}:
                raise TPVError(
                    f"curves= have widths {sorted(curve, key=str)} for {group.name}, which has {group.width} "
                    "channels: give the curves of a result for this network, from 1 to all channels."
                )
        curves = {}
        with self._progress.stage("measuring curves", total=len(self._groups)) as bar:
            for group in self._groups:
                order = self._unpruned_values[group.name].argsort(stable=True)
                curves[group.name] = known.get(group.name) or measure_curve(
                    task.model, group, order, task.data,
                    refit=task.compensate, output=self._output, forward=task.forward,
                )  # fmt: skip
                bar.advance()
        return curves

    def _step(
        self, k: int, current: nn.Module, removed: Removed, curves: dict[str, Curve]
    ) -> tuple[PruningStep, nn.Module]:
        started, task = time.perf_counter(), self._task
        keep = 1 - (1 - task.target.keep) * (k + 1) / task.steps
        gone = self._select(current, removed, curves, keep * self._costs.total)
        predicted = predict(task.model, task.data, self._groups, gone, task.output, task.forward)
        pruned = remove(task.model, task.example, self._groups, gone, task.forward)
        before_repair, _ = self._calibration(pruned)
        self._repair(pruned, gone)
        change_test, accuracy = self._test(pruned) if self._test else (None, None)
        widths = [group.width - len(gone[group.name]) for group in self._groups]
        macs, params = self._macs.of(widths), self._params.of(widths)
        step = PruningStep(
            removed=gone,
            macs=round(macs),
            params=round(params),
            macs_share=macs / self._macs.total,
            params_share=params / self._params.total,
            cost_share=self._costs.of(widths) / self._costs.total,
            predicted=Estimate(predicted.first_order, predicted.first_order_stderr, 0.0),
            linearity=predicted.value,
            output_change_before_repair=before_repair,
            output_change=self._calibration(pruned)[0],
            output_change_test=change_test,
            accuracy=accuracy,
            seconds=round(time.perf_counter() - started, 2),
        )
        return step, pruned

    def _select(
        self, current: nn.Module, removed: Removed, curves: dict[str, Curve], limit: float
    ) -> dict[str, list[int]]:
        """The channels to remove from the unpruned network."""
        if self._task.allocation == "curves":
            return by_curves(self._groups, self._unpruned_values, curves, removed, self._costs, limit)
        values, terms = self._rescorer(current, removed)
        if self._task.allocation == "uniform":
            return uniformly(self._groups, values, removed, self._costs, limit)
        return by_ranking(self._groups, values, removed, self._costs, limit, terms)

    def _repair(self, model: nn.Module, removed: Removed) -> None:
        """Re-fit and recalibrate, as far as asked."""
        task = self._task
        if task.compensate:
            outputs = kept_outputs(self._groups, removed)
            compensate(model, task.model, task.data, outputs, forward=task.forward, progress=self._progress)
        if task.config.recalibrate:
            recalibrate(model, task.data, forward=task.forward)

    def _metadata(self) -> dict[str, Any]:
        task, accuracy = self._task, self._test.unpruned_accuracy if self._test else None
        return {
            "target": repr(task.target),
            "target_unit": task.target.unit,
            "criterion": _text(task.criterion),
            "allocation": task.allocation,
            "compensate": task.compensate,
            "recalibrate": task.config.recalibrate,
            "seed": task.config.generator,
            **({"replaced_shortcuts": self._replaced} if self._replaced else {}),
            "output": self._output.name,
            "unit": self._output.unit,
            "examples": sum(map(batch_size, task.data)),
            "test_examples": sum(map(batch_size, task.test or [])),
            "unpruned": {
                "macs": round(self._macs.total),
                "params": round(self._params.total),
                "accuracy": None if accuracy is None else dataclasses.asdict(accuracy),
                "widths": {group.name: group.width for group in self._groups},
            },
            "versions": {name: version(name) for name in ("tpv", "torch", "torch_pruning")}
            | {"torch": torch.__version__, "python": platform.python_version()},
        }


def _text(criterion: Any) -> str:
    """A criterion with its options."""
    if dataclasses.is_dataclass(criterion):
        return repr(criterion)
    options = {
        k: v for k, v in getattr(criterion, "__dict__", {}).items() if isinstance(v, int | float | str)
    }
    return f"{type(criterion).__name__}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _check_data(task: PruningTask) -> None:
    """Refuse, before any tracing, what cannot be measured; warn if some outputs do not count."""
    first = task.data[0]
    check_device(task.model, first if task.forward else inputs(first))
    check_outputs(Linearization(task.model, task.forward, as_output("logits")), first)
    if task.forward is None:
        with torch.no_grad():
            outputs = call_model(task.model, task.example)
        several = outputs if isinstance(outputs, list | tuple) else ()
        count = sum(isinstance(t, Tensor) and t.is_floating_point() for t in several)
        if count > 1:
            warn(
                f"the model returns {count} tensors, and only the first counts: give forward=, such as "
                "forward=lambda model, batch: torch.cat([f.flatten(1) for f in model(batch)], 1), if the "
                "others matter."
            )
