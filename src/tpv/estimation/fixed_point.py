"""What every question starts with: the model at its trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tpv.common.errors import TPVError
from tpv.model.checks import check_model
from tpv.model.linearization import Forward, Linearization
from tpv.model.outputs import OutputSpec, as_output
from tpv.model.twin import twin_of
from tpv.perturbations import PerturbationSpec


@contextmanager
def fixed_point(
    model: nn.Module, perturbation: PerturbationSpec, forward: Forward | None, output: OutputSpec | None
) -> Iterator[Linearization]:
    """The model at w*, its predictions in the output space that the caller or the perturbation asks for.

    Raises:
        TPVError: for what is not a perturbation, and for a model without fixed predictions.
    """
    if not isinstance(perturbation, PerturbationSpec):
        raise TPVError(
            f"perturbation must be a tpv.Perturbation such as tpv.Quantization(bits=8), got {perturbation!r}."
        )
    if forward is not None and not callable(forward):
        raise TPVError(
            f"forward={forward!r} is a {type(forward).__name__}: give a function (model, batch) -> outputs."
        )
    check_model(model)
    output_space = as_output(perturbation.output if output is None else output)
    with twin_of(model, forward, plain_weights=perturbation.plain_weights) as (twin, remapped):
        yield Linearization(twin, remapped, output_space)
