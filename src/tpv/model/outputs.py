"""Output spaces: which function of a model's predictions is compared, and in which units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpv.common.errors import TPVError, did_you_mean
from tpv.common.format import called

OutputSpec = str | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Output:
    """The predictions z whose movement is measured.

    Attributes:
        name: as the metadata names it.
        unit: of a value: nothing for squared logits.
        select: what a model returns → a tensor f of outputs (N, ...).
        coordinates: (f, f at w*) → z with ‖∂z/∂w δ‖² = the value to first order.
        divergence: (f at w*, f at w* + δ) → the finite value, of the shape of f or without the class axis.
    """

    name: str
    unit: str
    select: Callable[[Any], Tensor]
    coordinates: Callable[[Tensor, Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]


def as_output(spec: OutputSpec) -> Output:
    """``"logits"``, ``"centered"``, ``"probabilities"``, ``"kl"``, or a function of what the model returns.

    Raises:
        TPVError: for anything else.
    """
    if callable(spec):
        name = called(spec)
        return Output(name, "", lambda raw: _selected(spec(raw), name), same, _squares)
    known = {
        "logits": Output("logits", "", outputs_tensor, same, _squares),
        "centered": Output(
            "centered logits", "squared centered logits", outputs_tensor, centered, _moved_centered
        ),
        "probabilities": Output(
            "probabilities", "squared probability", _class_scores, _softmax, _moved_probabilities
        ),
        "kl": Output("kl", "nats", _class_scores, _fisher_root, _kl),
    }
    if not isinstance(spec, str) or spec not in known:
        hint = did_you_mean(str(spec), known)
        raise TPVError(
            f"output={spec!r}: give {', '.join(map(repr, known))}, or a function from what the model returns "
            f"to a tensor.{hint}"
        )
    return known[spec]


def class_axis(f: Tensor) -> int:
    """Where PyTorch and transformers keep the classes: the last axis of (N, K) and (N, T, K), axis 1 of (N,
    K, H, W).
    """
    return -1 if f.ndim <= 3 else 1


def same(f: Tensor, at: Tensor) -> Tensor:
    """The outputs as they are."""
    return f


def centered(f: Tensor, at: Tensor) -> Tensor:
    """Π f with Π = I − 11ᵀ/K: minus the mean over the classes, which softmax ignores. A single output (N,) or
    (N, 1) stays.
    """
    return f - f.mean(class_axis(f), keepdim=True) if f.ndim > 1 and f.shape[class_axis(f)] > 1 else f


def _softmax(f: Tensor, at: Tensor) -> Tensor:
    return f.softmax(class_axis(f))


def _fisher_root(f: Tensor, at: Tensor) -> Tensor:
    """A f with AᵀA = ½(diag p − ppᵀ), half the softmax Fisher matrix at w*: A = (I − √p√pᵀ) diag(√p) / √2."""
    p = at.detach().softmax(class_axis(f))
    return p.sqrt() * (f - (p * f).sum(class_axis(f), keepdim=True)) / math.sqrt(2)


def _squares(before: Tensor, after: Tensor) -> Tensor:
    return (after.double() - before.double()).square()


def _moved_centered(before: Tensor, after: Tensor) -> Tensor:
    return _squares(*(centered(f.double(), f) for f in (before, after)))


def _moved_probabilities(before: Tensor, after: Tensor) -> Tensor:
    axis = class_axis(before)
    return _squares(before.double().softmax(axis), after.double().softmax(axis))


def _kl(before: Tensor, after: Tensor) -> Tensor:
    """KL(p at w* ‖ p at w* + δ), in nats."""
    log_p, log_q = (f.double().log_softmax(class_axis(f)) for f in (before, after))
    return (log_p.exp() * (log_p - log_q)).sum(class_axis(before), keepdim=True)


def mask_of(batch: Any, z: Tensor) -> Tensor | None:
    """1 where an output counts and 0 at padding, broadcastable to z; None if the batch has no attention mask
    for z (N, T, ...).

    A batch with decoder inputs is masked by its ``decoder_attention_mask``.
    """
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or z.ndim < 3 or z.shape[:2] != mask.shape:
        return None
    return (mask != 0).to(z.dtype).reshape(*mask.shape, *[1] * (z.ndim - 2))


def outputs_tensor(raw: Any) -> Tensor:
    """A model's outputs as one floating-point tensor with a batch axis.

    A tensor; ``.logits`` or ``["logits"]`` (``["out"]`` of torchvision's segmentation models); the first
    element of a tuple; the only tensor of a mapping, or its ``last_hidden_state``.

    Raises:
        TPVError: if they are anything else.
    """
    return _checked(_found(raw), raw)


def _found(raw: Any) -> Any:
    if isinstance(raw, Tensor):
        return raw
    if (logits := getattr(raw, "logits", None)) is not None:
        return logits
    if isinstance(raw, Mapping):
        named = next((raw[key] for key in ("logits", "out", "last_hidden_state") if key in raw), None)
        floating = [v for v in raw.values() if isinstance(v, Tensor) and v.is_floating_point()]
        return named if named is not None else floating[0] if len(floating) == 1 else raw
    return raw[0] if isinstance(raw, list | tuple) and raw else raw


def _selected(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TPVError(
            f"output={name} returned a {type(value).__name__}, not a tensor: labels are dropped from "
            "batches, so that there is no loss; "
            "pick the logits or another tensor (N, ...)."
        )
    return _checked(value, value)


def _checked(value: Any, raw: Any) -> Tensor:
    if not isinstance(value, Tensor):
        keys = f" with {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else ""
        raise TPVError(
            f"the model returned a {type(raw).__name__}{keys}, not a tensor of outputs: pass "
            "output=lambda returned: ... that picks it out, or where there is no output=, "
            "forward=lambda model, batch: ... that gives it."
        )
    if value.ndim == 0 or not value.is_floating_point():
        raise TPVError(
            "the model's outputs must be floating-point with the examples along the first axis; "
            f"got shape {tuple(value.shape)}, {value.dtype}."
        )
    return value


def _class_scores(raw: Any) -> Tensor:
    f = outputs_tensor(raw)
    if f.ndim < 2 or f.shape[class_axis(f)] < 2:
        raise TPVError(
            "output='kl' and 'probabilities' need logits of at least two classes, on the last axis of (N, "
            "K) or (N, T, K) or on axis 1 "
            f"of (N, K, H, W); got shape {tuple(f.shape)}."
        )
    return f
