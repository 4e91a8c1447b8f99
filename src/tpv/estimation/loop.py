"""One pass over the data: chunks that fit in memory, their contributions, and the sums."""

from __future__ import annotations

import operator
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from tpv.common.errors import TPVError, is_out_of_memory
from tpv.common.options import require_int
from tpv.common.progress import Listener, Progress
from tpv.common.stats import Moments
from tpv.common.warn import warn
from tpv.estimators.base import Chunk, EstimatorRun
from tpv.model.batches import batch_size, count_examples, narrow
from tpv.model.checks import check_device, check_outputs, explain_non_finite
from tpv.model.independence import check_last
from tpv.model.linearization import Linearization
from tpv.model.memory import choose_chunk_size, release_memory

Seed = int | torch.Generator


@dataclass
class Run:
    """A pass over the data.

    Attributes:
        moments: the sums so far.
        estimator_run: the estimator at work.
        chunk_size: examples at a time.
        outputs: per example.
        lin: the model.
        values: of each example, averaged over draws, chunk by chunk.
    """

    moments: Moments
    estimator_run: EstimatorRun
    chunk_size: int
    outputs: int
    lin: Linearization
    values: list[Tensor] = field(default_factory=list)

    def pointwise(self) -> Tensor:
        """The value of every example, (n,), float64."""
        return torch.cat(self.values)

    def halve(self) -> None:
        """Half as many examples at a time, after memory ran out."""
        self.chunk_size = max(1, self.chunk_size // 2)
        release_memory()
        warn(f"out of memory: continuing with chunk_size={self.chunk_size}; pass it to avoid this retry.")

    def metadata(self, generator: Seed, started: float, **asked: Any) -> dict[str, Any]:
        """What was asked, and how it was answered."""
        weight, reason = next(iter(self.lin.weights.values())), self.estimator_run.reason
        return {
            **asked,
            "estimator": self.estimator_run.method,
            **({} if reason is None else {"auto": reason}),
            "seed": "torch.Generator"
            if isinstance(generator, torch.Generator)
            else operator.index(generator),
            "output": self.lin.output.name,
            "unit": self.lin.output.unit,
            "outputs": self.outputs,
            "parameters": sum(w.numel() for w in self.lin.weights.values()),
            "chunk_size": self.chunk_size,
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch."),
            **self.estimator_run.metadata(),
            "seconds": round(time.perf_counter() - started, 3),
            "versions": {
                "tpv": version("tpv"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def as_generator(seed: Seed) -> torch.Generator:
    """A CPU generator from a seed, or the generator itself.

    Raises:
        TPVError: for anything else.
    """
    if isinstance(seed, torch.Generator) and seed.device.type == "cpu":
        return seed
    return torch.Generator().manual_seed(as_seed(seed))


def as_seed(seed: object) -> int:
    """A seed as a plain int.

    Raises:
        TPVError: for anything else.
    """
    try:
        return require_int("", "generator", seed, -(2**63), 2**64 - 1)
    except TPVError:
        raise TPVError(f"generator={seed!r}: give an int seed or a CPU torch.Generator.") from None


def accumulate(
    lin: Linearization,
    data: Any,
    begin: Callable[[int], EstimatorRun],
    chunk_size: int | None,
    progress: bool | Listener | Progress,
) -> Run:
    """One pass over the data, chunk by chunk. ``begin`` gets the number of outputs per example."""
    with Progress.of(progress).stage("measuring", total=count_examples(data)) as stage:
        return _accumulated(lin, data, begin, chunk_size, stage)


def _accumulated(
    lin: Linearization,
    data: Any,
    begin: Callable[[int], EstimatorRun],
    chunk_size: int | None,
    stage: Progress,
) -> Run:
    run: Run | None = None
    checked: set[int] = set()
    for number, batch in enumerate(data):
        check_device(lin.model, lin.used(batch))
        size = batch_size(batch)
        if size not in checked:
            outputs = check_outputs(lin, batch)[0].numel()
            checked.add(size)
        if run is None:
            estimator_run = begin(outputs)
            at_a_time = _chunk_size(chunk_size, lin, batch, estimator_run)
            moments = Moments(estimator_run.names, estimator_run.draws)
            run = Run(moments, estimator_run, at_a_time, outputs, lin)
            check_last(lin, batch, min(at_a_time, size))
        start = 0
        while start < size:
            stop = min(start + run.chunk_size, size)
            part = narrow(batch, start, stop, size)
            if not _added(run, Chunk(part, batch, start, stop - start, size, number, run.moments.count)):
                run.halve()
                continue
            stage.advance(stop - start)
            start = stop
    if run is None:
        raise TPVError("data is empty: it gave no batch.")
    return run


def _added(run: Run, chunk: Chunk) -> bool:
    """Whether the chunk fitted in memory and is part of the sums now."""
    try:
        contribution = run.estimator_run.contribution(chunk)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or chunk.n == 1:
            raise
        return False
    if not contribution.values.isfinite().all():
        raise TPVError(explain_non_finite(run.lin, chunk.batch))
    run.moments.update(contribution.values, contribution.noise)
    run.values.append(_averaged_over_draws(contribution.values[..., 0]))
    return True


def _averaged_over_draws(values: Tensor) -> Tensor:
    """(N,) or (N, D) as one float64 number per example."""
    values = values.detach().to("cpu", torch.float64)
    return values.mean(1) if values.ndim == 2 else values


def _positive(chunk_size: object) -> int:
    try:
        return require_int("", "chunk_size", chunk_size, 1)
    except TPVError:
        raise TPVError(f"chunk_size={chunk_size!r}: chunk_size must be an int of at least 1.") from None


def _chunk_size(asked: int | None, lin: Linearization, batch: Any, estimator_run: EstimatorRun) -> int:
    if asked is not None:
        return _positive(asked)
    if estimator_run.chunk_size is not None:
        return estimator_run.chunk_size
    return choose_chunk_size(lin, batch, estimator_run.scratch(batch), backward=estimator_run.backward)
