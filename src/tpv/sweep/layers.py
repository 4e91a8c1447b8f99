"""Which layer types the sweep knows in closed form."""

from __future__ import annotations

from torch import Tensor, nn

from tpv.sweep.conv import ConvCall
from tpv.sweep.embedding import EmbeddingCall
from tpv.sweep.layer import LayerCall, widened
from tpv.sweep.linear import LinearCall
from tpv.sweep.norm import ChannelNormCall, LastNormCall

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNEL_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
_LAST_NORM = (nn.LayerNorm, nn.RMSNorm)


def is_known(module: nn.Module) -> bool:
    """Whether the exact type has a formula and holds its own weight and bias.

    A subclass may compute anything; pruning and weight norm leave the type but hold other parameters.
    """
    known = type(module) in (nn.Linear, nn.Embedding, *_CONV, *_CHANNEL_NORM, *_LAST_NORM)
    return known and {name for name, p in module._parameters.items() if p is not None} <= {"weight", "bias"}


def layer_call(module: nn.Module, x: Tensor, n: int, passes: int) -> LayerCall | None:
    """The recorded call, or None if the input's layout is not one of n examples along the first axis."""
    if x.ndim == 0 or len(x) % n:
        return None
    x = widened(x.detach())
    match module:
        case nn.Linear() if x.ndim > 1:
            return LinearCall(module, x, n, passes)
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() if x.ndim == module.weight.ndim:
            return ConvCall(module, x, n, passes)
        case nn.Embedding():
            return EmbeddingCall(module, x, n)
        case nn.LayerNorm() | nn.RMSNorm() if x.ndim > len(module.normalized_shape):
            return LastNormCall(module, x, n)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() | nn.GroupNorm() if x.ndim > 1:
            return ChannelNormCall(module, x, n)
        case _:
            return None
