"""Refusing, before any work, what would be silently wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from tpv.common.errors import TPVError
from tpv.common.reads import non_finite
from tpv.model.batches import batch_size, narrow, tensors
from tpv.model.linearization import Linearization


def check_module(model: object) -> None:
    """Refuse what is not a model.

    Raises:
        TPVError: naming its type.
    """
    if not isinstance(model, nn.Module):
        raise TPVError(f"model must be a torch.nn.Module, got {type(model).__name__}.")


def check_model(model: nn.Module) -> None:
    """Refuse a model without a fixed point to measure at.

    Raises:
        TPVError: for something that is not an ``nn.Module``; for BatchNorm or dropout in training mode,
            BatchNorm without running statistics, an embedding that renormalizes itself; for NaN or infinite
            weights; for a model without trainable floating-point parameters.
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule) and not isinstance(
        model, torch.jit._trace.TopLevelTracedModule
    ):
        raise TPVError(
            "the model is a torch.jit.ScriptModule, whose layers are not separate modules: give the "
            "nn.Module that it was made from."
        )
    for name, module in model.named_modules():
        if problem := _unsteady(module):
            raise TPVError(f"{name or 'the model'} is {problem}")
    trainable = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    if not trainable:
        frozen = any(p.is_floating_point() for p in model.parameters())
        cause = (
            "all its parameters are frozen: call model.requires_grad_(True)"
            if frozen
            else "it has no floating-point parameters"
        )
        raise TPVError(f"the model has nothing to disturb, because {cause}.")
    for name, parameter in model.named_parameters():
        if problem := _untreatable(parameter):
            raise TPVError(f"{name} is {problem}")
    broken = non_finite(dict([*model.named_parameters(), *model.named_buffers()]))
    if broken is not None:
        raise TPVError(f"{broken} holds NaN or infinity: the checkpoint is broken or training diverged.")


def _unsteady(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, _BatchNorm):
        if module.training:
            return (
                f"a {kind} in training mode, so every prediction depends on its batch: call model.eval() "
                "first."
            )
        if module.running_mean is None:
            return (
                f"a {kind} without running statistics, so every prediction depends on its batch: TPV is not "
                "defined for it."
            )
    if isinstance(module, _DropoutNd) and module.training and module.p > 0:
        return f"an active {kind}(p={module.p}), which makes predictions random: call model.eval() first."
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.training and module.dropout > 0:
        return (
            f"a {kind} with active dropout={module.dropout}, which makes predictions random: call "
            "model.eval() first."
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return f"a {kind} with max_norm, which rewrites its weights in every forward pass: set max_norm=None."
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (module.scale_grad_by_freq or module.sparse):
        return (
            f"a {kind} with scale_grad_by_freq or sparse gradients, which are not a Jacobian: set both to "
            "False."
        )
    return None


def _untreatable(parameter: nn.Parameter) -> str | None:
    if is_lazy(parameter):
        return "a parameter of a lazy layer that has not run yet: run the model on one batch first."
    if parameter.device.type == "mps":
        return f"on {parameter.device}, which has no float64 for sums: call model.cpu()."
    if parameter.is_complex() and parameter.requires_grad:
        return (
            "complex, and TPV is defined for real weights: freeze it, or hold its real and imaginary parts."
        )
    return None


def check_device(model: nn.Module, batch: Any) -> None:
    """Refuse a batch that is not where the model is.

    Raises:
        TPVError: naming both devices.
    """
    home = {p.device for p in model.parameters()}
    for tensor in tensors(batch):
        if tensor.is_inference():
            raise TPVError(
                "the batch was made under torch.inference_mode(), and autograd cannot use it: make it "
                "outside, or clone() it."
            )
        if tensor.device not in home and tensor.ndim:
            raise TPVError(
                f"the batch is on {tensor.device} and the model on {', '.join(sorted(map(str, home)))}: "
                "move one of them, for example model.to(device) or batch.to(device)."
            )


def repeatability(dtype: torch.dtype) -> float:
    """How much two passes over the same examples may differ, relative to the largest output."""
    return {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)


@torch.no_grad()
def check_outputs(lin: Linearization, batch: Any) -> Tensor:
    """Outputs (m, ...) of the batch's first examples, after checking that each is a function of that
    example only.

    Cost: three forward passes over at most four examples.

    Raises:
        TPVError: for outputs without the examples along the first axis, NaN or infinite outputs, a model
            whose two passes differ, or one whose predictions depend on the rest of the batch.
    """
    size = batch_size(batch)
    m = min(4, size)
    few = narrow(batch, 0, m, size)
    with (
        torch.enable_grad()
    ):  # so that a tensor of weights that the model stores has its history, and a second use raises
        with lin.watch.forward() as check_graph:
            outputs = lin(few)
        check_graph(outputs)
        first = outputs.detach()
    if len(first) != m:
        raise TPVError(
            f"outputs must have the examples along the first axis: {m} examples gave outputs of shape "
            f"{tuple(first.shape)}. "
            "If the batch is not (inputs, ...) or keywords, pass forward=lambda model, batch: ..."
        )
    if not first.isfinite().all():
        raise TPVError(explain_non_finite(lin, few))
    dtypes = {first.dtype, *(w.dtype for w in lin.weights.values())}
    tolerance = max(map(repeatability, dtypes)) * first.abs().max()
    if (lin(few) - first).abs().max() > tolerance:
        raise TPVError(
            "two passes over the same batch gave different outputs: the model draws random numbers or "
            "changes its own state. "
            "Call model.eval(), and switch off functional dropout and sampling."
        )
    single = lin(narrow(few, 0, 1, m))
    if m > 1 and (single.shape != first[:1].shape or (single - first[:1]).abs().max() > tolerance):
        raise TPVError(
            "an example's outputs change with the other examples of its batch (batch statistics, sorting or "
            "mixing across the batch): "
            "TPV is an average over examples and is not defined for it."
        )
    return first


@torch.no_grad()
def explain_non_finite(lin: Linearization, batch: Any) -> str:
    """Which module first produced NaN or infinity, or what else can be said."""
    if any(t.is_floating_point() and not t.isfinite().all() for t in tensors(batch)):
        return "the batch holds NaN or infinity: clean the data."
    culprits: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if any(t.is_floating_point() and not t.isfinite().all() for t in tensors(output)):
                culprits.append(name or "the model")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in lin.model.named_modules()]
    try:
        lin(batch)
    finally:
        for handle in handles:
            handle.remove()
    if culprits:
        return (
            f"the outputs are NaN or infinite; {culprits[0]} is the first module to produce them: check its "
            "inputs and the dtype's range."
        )
    return (
        "the result is NaN or infinite although the outputs are finite: gradients or displaced outputs "
        "overflow; "
        "use a wider dtype or a smaller perturbation."
    )
