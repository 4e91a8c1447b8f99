"""What every question starts with: the model at its trained weights, and the default estimator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tpv.common.errors import TPVError
from tpv.estimators import Estimator, Exact, Hutchinson, HutchPlusPlus, LinearizedMonteCarlo, MonteCarlo
from tpv.model.checks import check_model
from tpv.model.linearization import Forward, Linearization
from tpv.model.outputs import OutputSpec, as_output
from tpv.model.twin import twin_of
from tpv.perturbations import Perturbation
from tpv.perturbations.base import diagonal
from tpv.training import Retraining
from tpv.training.label_noise import LabelNoise

_FEW_SWEEPS = 8192


@contextmanager
def fixed_point(
    model: nn.Module, perturbation: Perturbation, forward: Forward | None, output: OutputSpec | None
) -> Iterator[Linearization]:
    if not isinstance(perturbation, Perturbation):
        raise TPVError(
            f"perturbation must be a tpv.Perturbation such as tpv.Quantization(bits=8), got {perturbation!r}."
        )
    check_model(model)
    chosen = as_output(perturbation.output if output is None else output)
    with twin_of(model, forward) as (twin, remapped):
        yield Linearization(twin, remapped, chosen)


def default_estimator(
    lin: Linearization, perturbation: Perturbation, examples: int | None, outputs: int
) -> Estimator:
    """Exact where it is affordable or the displacement is fixed, else one probe per example, else draws; real
    ones for retraining.
    """
    if perturbation.deterministic:
        return Exact()
    if isinstance(perturbation, Retraining):
        return MonteCarlo(perturbation.runs)
    if isinstance(perturbation, LabelNoise):
        return (
            Exact()
            if perturbation.meet(lin.weights.select(perturbation.params)).ntk.dense
            else HutchPlusPlus()
        )
    if diagonal(perturbation, lin.weights) is None:
        return LinearizedMonteCarlo()
    affordable = outputs == 1 or (examples is not None and examples * outputs <= _FEW_SWEEPS)
    return Exact() if affordable else Hutchinson()
