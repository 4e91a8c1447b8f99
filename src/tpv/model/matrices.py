"""Which parameters multiply activations, and which of their axes count output channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tpv.model.types import TRANSPOSED_LINEAR, type_name
from tpv.model.weights import Weights

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NOT_MULTIPLIED = ("pos", "embed", "token", "table", "bias", "scale", "gamma", "beta")


def is_matrix(weights: Weights, name: str) -> bool:
    """Whether a parameter is the weight of a layer, or one outside of known layers with at least two axes
    longer than 1 and no word in its own name that says that it is added or scales.
    """
    module, own, w = weights.module(name), name.rpartition(".")[2], weights[name]
    if _is_layer(module):
        return "weight" in own and w.ndim > 1
    added = isinstance(module, _NORMS) or any(word in own.lower() for word in _NOT_MULTIPLIED)
    return not added and sum(n > 1 for n in w.shape) > 1


def channels_first(weights: Weights, name: str, w: Tensor) -> Tensor:
    """A weight as (output channels, ...); experts (experts, outputs, inputs) have their outputs one after
    the other.
    """
    return w.flatten(0, 1) if _are_experts(weights, name) else w.movedim(_axis(weights, name), 0)


def channels_back(weights: Weights, name: str, values: Tensor) -> Tensor:
    """Values (output channels, ...) in the order of the weight's own axes."""
    if _are_experts(weights, name):
        return values.reshape(*weights[name].shape[:2], *values.shape[1:])
    return values.movedim(0, _axis(weights, name))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _LAYERS) or type_name(module) == TRANSPOSED_LINEAR


def _are_experts(weights: Weights, name: str) -> bool:
    return weights[name].ndim == 3 and not _is_layer(weights.module(name))


def _axis(weights: Weights, name: str) -> int:
    module = weights.module(name)
    return int(isinstance(module, _TRANSPOSED) or type_name(module) == TRANSPOSED_LINEAR)
