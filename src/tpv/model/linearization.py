"""A model at its trained weights: its outputs, displaced outputs and Jacobian-vector products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tpv.model.attributes import Attributes
from tpv.model.batches import batch_size, call_model, duplicated, inputs, map_tensors
from tpv.model.outputs import Output, as_output, mask_of
from tpv.model.padding import PaddingRows
from tpv.model.process_state import differentiable_kernels, eager
from tpv.model.substitution import Substitution
from tpv.model.twin import Forward as Forward
from tpv.model.watch import watch_of
from tpv.model.weights import Weights


class Linearization:
    """A model at its trained weights w*: predictions z(w*; x) and those at finite displacements.

    z are the outputs f themselves unless ``output`` says otherwise; at padded positions they are 0.

    Args:
        model: any ``nn.Module`` in evaluation mode.
        forward: ``(model, batch) -> outputs``; by default a batch's tensor, first element or keywords go in.
        output: the output space.

    Attributes:
        routes: those to Jδ that are proven for this model (:mod:`tpv.model.products`), the fastest first.
    """

    def __init__(
        self, model: nn.Module, forward: Forward | None = None, output: Output | None = None
    ) -> None:
        self.model = model
        self.watch = watch_of(model)
        self.output = output or as_output("logits")
        self.weights = Weights(model)
        self.custom_forward = forward is not None
        self.routes: list[Any] = []
        self.forward = forward or call_model
        self._caller = _Caller(model, self.forward)
        self._padding_rows = PaddingRows(model)
        self._substituted = Substitution(self._caller)
        self._normalised = any(isinstance(m, _BatchNorm | _InstanceNorm) for m in model.modules())

    def padded(self, batch: Any) -> Any:
        """The batch; one of a single example with that example twice, where torch's gradients need it.

        On the CPU the backward pass of BatchNorm and InstanceNorm over a single example is wrong (torch 2.13)
        where the gradient that it gets is laid out channels last.
        """
        single = batch_size(batch) == 1
        on_cpu = next(iter(self.weights.values())).device.type == "cpu"
        return duplicated(batch) if self._normalised and single and on_cpu else batch

    def used(self, batch: Any) -> Any:
        """What of a batch the predictions can depend on: all of it under a ``forward=``, else its inputs."""
        return batch if self.custom_forward else inputs(batch)

    def __call__(self, batch: Any) -> Tensor:
        """Predictions z (N, ...), with gradients wherever the caller enabled them."""
        with eager(), differentiable_kernels(self.model):
            return self._predictions(self.output.select(self._caller(batch)), batch)

    def differentiable(self, batch: Any, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Predictions (N, ...) with gradients that can be trusted (:meth:`padded`), if wanted with some
        parameters replaced.
        """
        padded = self.padded(batch)
        z = self(padded) if weights is None else self.at(weights, padded)
        return z if padded is batch else z[:1]

    def at(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Predictions with some parameters replaced; the model itself is not touched."""
        return self._predictions(self.outputs(batch, weights), batch)

    def outputs(self, batch: Any, weights: Mapping[str, Tensor]) -> Tensor:
        """Outputs f (N, ...) with some parameters replaced."""
        renamed = {f"model.{name}": value for name, value in weights.items()}
        with eager(), self._padding_rows.kept():
            return self.output.select(self._substituted(renamed, (batch,)))

    def reading(self, coordinates: Callable[[Tensor, Tensor], Tensor]) -> Linearization:
        """The same model with other coordinates of its outputs."""
        other = copy.copy(self)
        other.output = replace(self.output, coordinates=coordinates)
        return other

    @contextmanager
    def raw(self) -> Iterator[None]:
        """A context in which predictions are the outputs: routes do not depend on the output space."""
        asked = self.output
        self.output = replace(asked, coordinates=as_output("logits").coordinates)
        try:
            yield
        finally:
            self.output = asked

    def _predictions(self, f: Tensor, batch: Any) -> Tensor:
        return masked(self.output.coordinates(f, f), batch)

    @torch.no_grad()
    def displaced(self, batch: Any, delta: Mapping[str, Tensor]) -> Tensor:
        """f(w* + δ; x), (N, ...). Cost: one forward pass."""
        return self.outputs(batch, {name: self.weights[name] + d for name, d in delta.items()})


def masked(z: Tensor, batch: Any) -> Tensor:
    """z with zeros at the padded positions of a batch with an attention mask."""
    mask = mask_of(batch, z)
    return z if mask is None else z * mask


class _Caller(nn.Module):
    """The model behind its ``forward`` function, so that ``functional_call`` reaches its parameters.

    It works on a copy of the batch, which the function may take apart and the model may write into.
    """

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._forward = forward
        self._attributes = Attributes(model)

    def forward(self, batch: Any) -> Any:
        self._attributes.restore()
        return self._forward(self.model, map_tensors(batch, torch.clone))
