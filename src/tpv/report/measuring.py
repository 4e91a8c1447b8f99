"""The report's loop: each perturbation on train and test, and its linearity."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tpv.cli.target import Target
from tpv.common.errors import TPVError
from tpv.estimation.estimate import estimate
from tpv.estimation.linearity import linearity
from tpv.estimation.stability import stability
from tpv.estimators import Auto, Estimator, Hutchinson
from tpv.model.batches import batch_size
from tpv.perturbations import Isotropic, PerturbationSpec, Quantization, SGDNoise
from tpv.report.contents import Entry, Report
from tpv.report.noise import ASK, NOISE, NOISE_EXAMPLES, PASSES, too_dear
from tpv.report.notes import noted
from tpv.report.stages import Stages, Tell
from tpv.report.unfinished import Unfinished, entry_key
from tpv.report.view import View
from tpv.results import LinearityResult, StabilityResult, TPVResult

HEADLINE = Isotropic(std=1.0)
DEFAULTS: tuple[PerturbationSpec, ...] = (
    SGDNoise(lr=0.1, batch_size=128),
    *(Quantization(bits=bits) for bits in (8, 6, 4)),
    *(Quantization(bits=bits, error="actual") for bits in (8, 6, 4)),
    NOISE,
)
LINEARITY_EXAMPLES, LINEARITY_DRAWS = 256, 8


@dataclass(frozen=True)
class Plan:
    """How to measure a target.

    Attributes:
        perturbations: what to report besides the headline; None for ``DEFAULTS``, of which label noise is
            left out where it costs too much or cannot be read.
        estimator: None for the default of each perturbation; a fixed displacement and label noise never need
            Hutchinson's probes.
        limit: examples of each data set; None for all.
        seed: of everything random.
        device: where model and batches go; None leaves them.
        output, layers: as in :func:`tpv.estimate`; with ``"logits"`` each perturbation reads what it reads by
            default.
        label_noise_examples: how many training inputs label noise is fitted on, and how many test inputs it
            is read on.
    """

    perturbations: tuple[PerturbationSpec, ...] | None = None
    estimator: Estimator | None = None
    limit: int | None = None
    seed: int = 0
    device: torch.device | None = None
    output: str = "logits"
    layers: str | None = None
    label_noise_examples: int = NOISE_EXAMPLES

    @property
    def asked(self) -> tuple[PerturbationSpec, ...]:
        """The perturbations, or the default ones."""
        return DEFAULTS if self.perturbations is None else self.perturbations


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
    entries: list[Entry] = []
    left_out: str | None = None
    for perturbation in plan.asked:
        found = functools.partial(
            _finished, kept, entry_key(perturbation), functools.partial(work.entry, perturbation, check=True)
        )
        if plan.perturbations is None and perturbation is NOISE:
            noise, left_out = _if_possible(found, headline, work)
            entries += noise
        else:
            entries.append(found())
    return Report(target.title, headline, tuple(entries), _settings(plan, left_out))


def _if_possible(found: Callable[[], Entry], headline: Entry, work: _Work) -> tuple[list[Entry], str | None]:
    """An entry that nobody asked for, or why it is left out."""
    why = too_dear(headline.train.metadata, work.fitted)
    if why is not None:
        return [], why
    try:
        return [found()], None
    except TPVError as error:
        return [], f"{error} Ask for another by {ASK} with other options."


def _settings(plan: Plan, left_out: str | None) -> dict[str, Any]:
    return {
        "limit": plan.limit,
        "estimator": repr(plan.estimator) if plan.estimator else "default",
        "seed": plan.seed,
        "output": plan.output,
        "layers": plan.layers,
        "linearity_examples": LINEARITY_EXAMPLES,
        "linearity_draws": LINEARITY_DRAWS,
        "label_noise_examples": plan.label_noise_examples,
        "label_noise_left_out": left_out,
    }


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
        self._train, self._test = self._first(plan.limit)
        few = self._first(min(LINEARITY_EXAMPLES, plan.limit or LINEARITY_EXAMPLES))
        self._few = few[0] if few[1] is None else few[1]

    def _first(self, limit: int | None) -> tuple[View, View | None]:
        """The first training inputs and the first test inputs."""
        target, device = self._target, self._plan.device
        return View(target.train, limit, device), None if target.test is None else View(
            target.test, limit, device
        )

    @functools.cached_property
    def _for_noise(self) -> tuple[list[Any], list[Any] | None]:
        """Batches in memory, so that a kernel's examples keep their order."""
        train, test = self._first(
            min(self._plan.label_noise_examples, self._plan.limit or self._plan.label_noise_examples)
        )
        return list(train), None if test is None else list(test)

    @property
    def fitted(self) -> int:
        """How many examples label noise is fitted on."""
        return sum(map(batch_size, self._for_noise[0]))

    def entry(self, perturbation: PerturbationSpec, *, check: bool) -> Entry:
        """What the report says of one perturbation."""
        train: Any = self._train
        test: Any = self._test
        law = perturbation
        if perturbation.needs_training_data:
            train, test = self._for_noise
            law = perturbation.prepared(self._target.model, train, self._target.forward)
        passes = () if test is None else PASSES if law.training_data is not None else ("train", "test")
        with noted() as notes:
            result = self._read(train, test, law, passes or ("train",))
            line = self._line(law) if check else None
        return Entry(repr(perturbation), result, line, tuple(notes))

    def _read(
        self, train: Any, test: Any, law: PerturbationSpec, passes: tuple[str, ...]
    ) -> TPVResult | StabilityResult:
        stages = Stages(repr(law), passes, self._tell)
        how: dict[str, Any] = {
            "estimator": self._estimator(law),
            "layers": self._plan.layers,
            **self._how(stages),
        }
        with stages.watching_kernels():
            if test is None:
                return estimate(self._target.model, train, law, **how)
            return stability(self._target.model, train, test, law, **how)

    def _line(self, law: PerturbationSpec) -> LinearityResult:
        stages = Stages(repr(law), ("linearity",), self._tell)
        with stages.watching_kernels():
            return linearity(self._target.model, self._few, law, draws=LINEARITY_DRAWS, **self._how(stages))

    def _how(self, stages: Stages) -> dict[str, Any]:
        output = None if self._plan.output == "logits" else self._plan.output
        return {
            "output": output,
            "forward": self._target.forward,
            "generator": self._plan.seed,
            "progress": stages,
        }

    def _estimator(self, law: PerturbationSpec) -> Estimator:
        chosen = self._plan.estimator
        needless = (law.deterministic or law.training_data is not None) and isinstance(chosen, Hutchinson)
        return Auto() if chosen is None or needless else chosen
