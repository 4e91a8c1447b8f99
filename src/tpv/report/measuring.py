"""The report's loop: each perturbation on train and test, and its linearity."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from tpv.common.errors import TPVError
from tpv.common.fingerprint import fingerprint
from tpv.common.progress import Listener, Progress
from tpv.common.resume import ResumableStore
from tpv.estimation.estimate import estimate
from tpv.estimation.linearity import linearity
from tpv.estimation.stability import stability
from tpv.estimators import Auto, Estimator, Hutchinson
from tpv.model.batches import batch_size
from tpv.perturbations import Isotropic, PerturbationSpec, Quantization, SGDNoise
from tpv.report.contents import Entry, Report
from tpv.report.noise import ASK, NOISE, NOISE_EXAMPLES, too_expensive
from tpv.report.notes import noted
from tpv.report.subject import Subject
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
    """How to measure a subject.

    Attributes:
        perturbations: what to report besides the headline; None for ``DEFAULTS``, of which label noise is
            left out where it costs too much or cannot be evaluated.
        estimator: None for the default of each perturbation; a fixed displacement and label noise never need
            Hutchinson's probes.
        limit: examples of each data set; None for all.
        seed: of everything random.
        device: where model and batches go; None leaves them.
        output, layers: as in :func:`tpv.estimate`; with ``"logits"`` each perturbation has its default output
            space.
        label_noise_examples: how many training inputs label noise is fitted on, and how many test inputs it
            is evaluated on.
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


def measure(
    subject: Subject, plan: Plan, store: ResumableStore, progress: bool | Listener | Progress = False
) -> Report:
    """All the numbers of a report; what the store has is not computed again.

    Args:
        subject: what to measure; its model is where ``plan.device`` says.
        plan: how.
        store: finished entries, added to as the work goes on.
        progress: as in :func:`tpv.estimate`; each perturbation is a part.

    Raises:
        TPVError: as :func:`tpv.estimate`.
    """
    work = _Work(subject, plan, store, Progress.of(progress))
    headline = work.finished(0, HEADLINE)
    entries: list[Entry] = []
    left_out: str | None = None
    for number, perturbation in enumerate(plan.asked, 1):
        if plan.perturbations is None and perturbation is NOISE:
            noise, left_out = work.finished_if_possible(number, headline)
            entries += noise
        else:
            entries.append(work.finished(number, perturbation))
    return Report(subject.title, headline, tuple(entries), _settings(plan, left_out))


def finished_parts(plan: Plan, store: ResumableStore) -> int:
    """How many parts of the report the store has."""
    keys = [_key(0, HEADLINE), *(_key(i, p) for i, p in enumerate(plan.asked, 1))]
    return sum(store.get(key) is not None for key in dict.fromkeys(keys))


def _key(number: int, perturbation: PerturbationSpec) -> str:
    return f"{perturbation!r} {fingerprint(perturbation)}" if number else f"headline {perturbation!r}"


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


class _Work:
    """A subject's data as the plan wants them, and the parts of the report that they give."""

    def __init__(self, subject: Subject, plan: Plan, store: ResumableStore, progress: Progress) -> None:
        self._subject, self._plan, self._store, self._progress = subject, plan, store, progress
        self._train, self._test = self._first(plan.limit)
        few = self._first(min(LINEARITY_EXAMPLES, plan.limit or LINEARITY_EXAMPLES))
        self._few = few[0] if few[1] is None else few[1]

    def _first(self, limit: int | None) -> tuple[View, View | None]:
        """The first training inputs and the first test inputs."""
        subject, device = self._subject, self._plan.device
        test = None if subject.test is None else View(subject.test, limit, device)
        return View(subject.train, limit, device), test

    @functools.cached_property
    def _for_noise(self) -> tuple[list[Any], list[Any] | None]:
        """Batches in memory, so that a kernel's examples keep their order."""
        limit = self._plan.label_noise_examples
        train, test = self._first(min(limit, self._plan.limit or limit))
        return list(train), None if test is None else list(test)

    def finished(self, number: int, perturbation: PerturbationSpec) -> Entry:
        """Part ``number`` of the report, from the store or computed now; part 0 is the headline."""
        key = _key(number, perturbation)
        stored = self._store.get(key)
        if stored is not None:
            return Entry.from_dict(stored)
        parts = len(self._plan.asked) + 1
        with self._progress.stage(repr(perturbation), part=number + 1, parts=parts) as stage:
            entry = self._entry(perturbation, stage, check=number > 0)
        self._store.put(key, entry.to_dict())
        return entry

    def finished_if_possible(self, number: int, headline: Entry) -> tuple[list[Entry], str | None]:
        """The label noise that nobody asked for, or why it is left out."""
        why = too_expensive(headline.train.metadata, sum(map(batch_size, self._for_noise[0])))
        if why is not None:
            return [], why
        try:
            return [self.finished(number, NOISE)], None
        except TPVError as error:
            return [], f"{error} Ask for another by {ASK} with other options."

    def _entry(self, perturbation: PerturbationSpec, stage: Progress, *, check: bool) -> Entry:
        train: Any = self._train
        test: Any = self._test
        prepared = perturbation
        if perturbation.needs_training_data:
            train, test = self._for_noise
            prepared = perturbation.prepared(self._subject.model, train, self._subject.forward)
        with noted() as notes:
            result = self._evaluated(train, test, prepared, stage)
            linearity = self._linearity(prepared, stage) if check else None
        return Entry(repr(perturbation), result, linearity, tuple(notes))

    def _evaluated(
        self, train: Any, test: Any, perturbation: PerturbationSpec, stage: Progress
    ) -> TPVResult | StabilityResult:
        options = {"estimator": self._estimator(perturbation), "layers": self._plan.layers, **self._options()}
        if test is None:
            with stage.stage("train") as inner:
                return estimate(self._subject.model, train, perturbation, progress=inner, **options)
        return stability(self._subject.model, train, test, perturbation, progress=stage, **options)

    def _linearity(self, perturbation: PerturbationSpec, stage: Progress) -> LinearityResult:
        options = {"draws": LINEARITY_DRAWS, **self._options()}
        with stage.stage("linearity") as inner:
            return linearity(self._subject.model, self._few, perturbation, progress=inner, **options)

    def _options(self) -> dict[str, Any]:
        output = None if self._plan.output == "logits" else self._plan.output
        return {"output": output, "forward": self._subject.forward, "generator": self._plan.seed}

    def _estimator(self, perturbation: PerturbationSpec) -> Estimator:
        """The one that was asked for, unless it is Hutchinson's and its probes have nothing to estimate."""
        asked = self._plan.estimator
        fitted = perturbation.deterministic or perturbation.training_data is not None
        return Auto() if asked is None or (fitted and isinstance(asked, Hutchinson)) else asked
