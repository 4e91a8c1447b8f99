"""The report's loop: each perturbation on train and test, and its linearity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tpv.estimation import estimate, linearity, stability
from tpv.estimators import Estimator, Hutchinson
from tpv.perturbations import Isotropic, Perturbation, Quantization, SGDNoise
from tpv.report.contents import Entry, Report
from tpv.report.target import Target
from tpv.report.unfinished import Unfinished, entry_key
from tpv.report.view import View

HEADLINE = Isotropic(std=1.0)
DEFAULTS: tuple[Perturbation, ...] = (
    SGDNoise(lr=0.1, batch_size=128),
    *(Quantization(bits=bits) for bits in (8, 6, 4)),
    *(Quantization(bits=bits, error="actual") for bits in (8, 6, 4)),
)
LINEARITY_EXAMPLES, LINEARITY_DRAWS = 256, 8

Tell = Callable[[str, str, int, int | None], None]


@dataclass(frozen=True)
class Plan:
    """How to measure a target.

    Attributes:
        perturbations: what to report besides the headline.
        estimator: None for the default of each perturbation; a fixed displacement never needs Hutchinson's probes.
        limit: examples of each data set; None for all.
        seed: of everything random.
        device: where model and batches go; None leaves them.
        output, layers: as in :func:`tpv.estimate`.
    """

    perturbations: tuple[Perturbation, ...] = DEFAULTS
    estimator: Estimator | None = None
    limit: int | None = None
    seed: int = 0
    device: torch.device | None = None
    output: str = "logits"
    layers: str | None = None


def measure(target: Target, plan: Plan, kept: Unfinished, tell: Tell) -> Report:
    """All the numbers of a report; what ``kept`` has is not computed again.

    Args:
        target: what to measure; its model is where ``plan.device`` says.
        plan: how.
        kept: finished entries, added to as the work goes on.
        tell: called with (perturbation, stage, examples done, examples in all or None).

    Raises:
        TPVError: as :func:`tpv.estimate`.
    """
    work = _Work(target, plan, tell)
    headline = _finished(kept, f"headline {HEADLINE!r}", lambda: work.entry(HEADLINE, check=False))
    entries = tuple(_finished(kept, entry_key(p), lambda p=p: work.entry(p, check=True)) for p in plan.perturbations)  # type: ignore[misc]
    settings = {
        "limit": plan.limit,
        "estimator": repr(plan.estimator) if plan.estimator else "default",
        "seed": plan.seed,
        "output": plan.output,
        "layers": plan.layers,
        "linearity_examples": LINEARITY_EXAMPLES,
        "linearity_draws": LINEARITY_DRAWS,
    }
    return Report(target.title, headline, entries, settings)


def _finished(kept: Unfinished, key: str, compute: Callable[[], Entry]) -> Entry:
    found = kept.get(key)
    if found is None:
        found = compute()
        kept.add(key, found)
    return found


class _Work:
    """A target's data as the plan wants them."""

    def __init__(self, target: Target, plan: Plan, tell: Tell) -> None:
        self._target, self._plan, self._tell = target, plan, tell
        self._train = View(target.train, plan.limit, plan.device)
        self._test = None if target.test is None else View(target.test, plan.limit, plan.device)
        limit = min(LINEARITY_EXAMPLES, plan.limit or LINEARITY_EXAMPLES)
        self._few = View(target.train if target.test is None else target.test, limit, plan.device)

    def entry(self, perturbation: Perturbation, *, check: bool) -> Entry:
        def settings(*stages: str) -> dict[str, Any]:
            progress = _Stages(repr(perturbation), stages, self._tell)
            return {"output": self._plan.output, "forward": self._target.forward, "generator": self._plan.seed, "progress": progress}

        model = self._target.model
        how: dict[str, Any] = {"estimator": self._estimator(perturbation), "layers": self._plan.layers}
        if self._test is None:
            result: Any = estimate(model, self._train, perturbation, **how, **settings("train"))
        else:
            result = stability(model, self._train, self._test, perturbation, **how, **settings("train", "test"))
        line = linearity(model, self._few, perturbation, draws=LINEARITY_DRAWS, **settings("linearity")) if check else None
        return Entry(repr(perturbation), result, line)

    def _estimator(self, perturbation: Perturbation) -> Estimator | None:
        chosen = self._plan.estimator
        return None if perturbation.deterministic and isinstance(chosen, Hutchinson) else chosen


class _Stages:
    """Progress of passes that follow each other, told by name: a count that does not grow begins the next."""

    def __init__(self, perturbation: str, stages: tuple[str, ...], tell: Tell) -> None:
        self._perturbation, self._stages, self._tell = perturbation, iter(stages), tell
        self._last: float = math.inf
        self._stage = ""
        tell(perturbation, stages[0], 0, None)

    def __call__(self, done: int, total: int | None) -> None:
        if done <= self._last:
            self._stage = next(self._stages, self._stage)
        self._last = done
        self._tell(self._perturbation, self._stage, done, total)
