"""Attention by the math kernel, for ``vmap`` and forward-mode AD, which have no rules for the fused ones."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class MathAttention(TorchFunctionMode):
    """Writes ``scaled_dot_product_attention`` out in plain operations, in this thread only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            func = _math
        elif func is F.multi_head_attention_forward:
            func = _multi_head_attention()
        return func(*args, **kwargs or {})


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # as torch does before it chooses a kernel
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    return torch.ops.aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


@cache
def _multi_head_attention() -> Any:
    """torch's own function with :func:`_math` inside: a mode does not see what happens in what it calls, and
    other modes shall get this function too.
    """
    original: Any = F.multi_head_attention_forward
    names = original.__globals__ | {"scaled_dot_product_attention": _math}
    function = FunctionType(original.__code__, names, original.__name__, original.__defaults__)
    function.__kwdefaults__ = original.__kwdefaults__
    names[original.__name__] = function
    return function
