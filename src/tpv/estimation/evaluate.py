"""TPV of one bound perturbation on one data set: the step that every question shares."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tpv.common.errors import TPVError
from tpv.common.options import require_bool
from tpv.common.progress import Listener, Progress
from tpv.estimation.loop import Seed, accumulate, as_generator
from tpv.estimators import Auto, Estimator
from tpv.estimators.base import EstimatorRun, Problem
from tpv.model.batches import batches, count_examples
from tpv.model.layers import LayersSpec
from tpv.model.linearization import Linearization
from tpv.model.regrouping import LargeBatches
from tpv.perturbations.bound import Bound
from tpv.results import TPVResult

AUTO = Auto()


@dataclass(frozen=True)
class Evaluation:
    """How TPV is evaluated; the fields are arguments of :func:`tpv.estimate`.

    Raises:
        TPVError: for what is not an estimator.
    """

    estimator: Estimator = AUTO
    layers: LayersSpec = None
    generator: Seed = 0
    progress: bool | Listener | Progress = False
    chunk_size: int | None = None
    pointwise: bool = False

    def __post_init__(self) -> None:
        require_bool("estimate", "pointwise", self.pointwise)
        if not isinstance(self.estimator, Estimator):
            raise TPVError(
                "estimator must be a tpv.Estimator such as tpv.Exact() or tpv.Hutchinson(probes=4), got "
                f"{self.estimator!r}."
            )

    def problem(self, lin: Linearization, bound: Bound, outputs: int, examples: int | None) -> Problem:
        """What the estimator works on."""
        return Problem(lin, bound, as_generator(self.generator), outputs, self.layers, examples)

    def tpv(self, lin: Linearization, bound: Bound, data: object) -> TPVResult:
        """The result on these data. Perturbations with a factor are evaluated in large batches, because each
        batch costs a pass over the training inputs.
        """
        started = time.perf_counter()
        read = batches(data) if bound.factor is None else LargeBatches(data)
        examples = count_examples(read)

        def begin(outputs: int) -> EstimatorRun:
            return self.estimator.begin(self.problem(lin, bound, outputs, examples))

        run = accumulate(lin, read, begin, self.chunk_size, self.progress)
        return TPVResult.from_moments(
            run.moments,
            run.estimator_run.no_layers,
            run.metadata(self.generator, started, perturbation=repr(bound.spec), **bound.metadata()),
            pointwise=run.pointwise() if self.pointwise else None,
            **run.estimator_run.extra_fields(),
        )
