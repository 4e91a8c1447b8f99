"""f, w and J at a fixed point: the only place that runs a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tpv._batches import call_model
from tpv._errors import TPVError
from tpv.weights import Weights

Forward = Callable[[nn.Module, Any], Any]


class Linearization:
    """A model at its trained weights w*: outputs f(w*; x), finite displacements and Jacobian products.

    Args:
        model: any ``nn.Module`` in evaluation mode.
        forward: ``(model, batch) -> outputs``; by default a batch's tensor, first element or keywords go in.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self.model = model
        self.weights = Weights(model)
        self.custom_forward = forward is not None
        self._forward_mode = True
        self._caller = _Caller(model, forward or call_model)

    def __call__(self, batch: Any) -> Tensor:
        """Outputs (N, ...), with gradients wherever the caller enabled them."""
        return outputs_tensor(self._caller(batch))

    def at(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Outputs with some parameters replaced; the model itself is not touched."""
        renamed = {f"model.{name}": value for name, value in weights.items()}
        return outputs_tensor(functional_call(self._caller, renamed, (batch,)))

    @torch.no_grad()
    def displaced(self, batch: Any, delta: Mapping[str, Tensor]) -> Tensor:
        """f(w* + δ; x), (N, ...). Cost: one forward pass."""
        return self.at({name: self.weights[name] + d for name, d in delta.items()}, batch)

    def jvp(self, batch: Any, delta: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """f(w*; x) and J(x) δ, each (N, ...).

        Cost: about 1.2 forward+backward passes by forward mode; two backward passes more for a model
        with an operation that has no forward-mode formula.
        """
        point = {name: self.weights[name] for name in delta}

        def f(w: Mapping[str, Tensor]) -> Tensor:
            return self.at(w, batch)

        with sdpa_kernel(SDPBackend.MATH):
            if self._forward_mode:
                try:
                    with torch.no_grad():
                        value, tangent = jvp(f, (point,), (dict(delta),))[:2]
                    return value, tangent
                except (NotImplementedError, RuntimeError):
                    self._forward_mode = False
            return _double_backward(f, point, delta)


def _double_backward(
    f: Callable[[Mapping[str, Tensor]], Tensor], point: Mapping[str, Tensor], delta: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """f and J δ, as the derivative of v ↦ ⟨Jᵀv, δ⟩."""
    with torch.enable_grad():
        w = {name: value.clone().requires_grad_() for name, value in point.items()}
        value = f(w)
        v = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, list(w.values()), v, create_graph=True, allow_unused=True)
        inner = sum(((g * d).sum() for g, d in zip(pulled, delta.values(), strict=True) if g is not None), v.sum() * 0)
        (tangent,) = torch.autograd.grad(inner, v)
    return value.detach(), tangent.detach()


class _Caller(nn.Module):
    """The model behind its ``forward`` function, so that ``functional_call`` reaches its parameters."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, batch: Any) -> Any:
        return self._forward(self.model, batch)


def outputs_tensor(outputs: Any) -> Tensor:
    """The outputs as a floating-point tensor with a batch axis; ``.logits`` of a Hugging Face output.

    Raises:
        TPVError: if they are anything else.
    """
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise TPVError(
            f"the model returned a {type(outputs).__name__}, not a tensor: "
            "pass forward=lambda model, batch: ... that returns the tensor of outputs."
        )
    if logits.ndim == 0 or not logits.is_floating_point():
        raise TPVError(
            "the model's outputs must be floating-point with the examples along the first axis; "
            f"got shape {tuple(logits.shape)}, {logits.dtype}."
        )
    return logits
