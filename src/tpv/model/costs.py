"""What a model costs, module by module: multiply-accumulates and parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tpv.common.errors import TPVError
from tpv.model.batches import batch_size, call_model, narrow
from tpv.model.checks import check_module
from tpv.model.linearization import Forward
from tpv.model.twin import twin_of
from tpv.model.watch import watch_of

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def module_macs(model: nn.Module, batch: Any, forward: Forward | None = None) -> dict[str, int]:
    """Multiply-accumulates of matrix products, convolutions, attention and recurrent layers in one forward
    pass of one example.

    What runs inside a module but inside none of its children counts for that module: the scores of attention
    for the attention, and its output projection too where it is computed without being called, as in
    ``nn.MultiheadAttention``. Additions of biases, normalization, activations, pooling and lookups are not
    counted.

    Args:
        model: in any mode; it is evaluated in evaluation mode and left as it was.
        batch: a tensor, a tuple whose first element is the input, or a mapping of keywords; its first example
            is used alone, so nothing has to be divided by a batch size, and work that examples share counts
            in full.
        forward: ``(model, batch) -> outputs`` for batches of another form.

    Returns:
        {name of the module: MACs}, in the order of ``model.named_modules()``, of the modules that multiply;
        the model itself is ``""``. A module under several names or called several times is summed under its
        first name.

    Raises:
        TPVError: if ``model`` is not an ``nn.Module`` or was scripted, for a batch without tensors.

    Cost: one forward pass of one example.

    Source: ``torch.utils.flop_counter``, whose FLOPs are twice the MACs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
        >>> module_macs(model, torch.zeros(2, 3, 4, 4))  # 9 · 3 · 8 · 16 and 128 · 10
        {'0': 3456, '2': 1280}
    """
    _refuse_scripted(model)
    example = narrow(batch, 0, 1, batch_size(batch))
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)
    with twin_of(model, forward) as (twin, run), _no_fused_attention_layers(), torch.no_grad():
        twin.eval()
        with watch_of(twin).forward(), counter, _flops_by_module(twin, counter) as flops:
            (run or call_model)(twin, example)
    return {name: flops[name] // 2 for name, _ in model.named_modules() if flops[name]}


def parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters each module holds itself, without its children; a shared one counts where it comes
    first.

    Args:
        model: the model.

    Returns:
        {name of the module: number of scalars}, in the order of ``model.named_modules()``, of the modules
        that hold any.

    Raises:
        TPVError: if ``model`` is not an ``nn.Module``.

    Example:
        >>> parameters(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)))
        {'0': 32, '2': 16}
    """
    check_module(model)
    counts = Counter[str]()
    for name, parameter in model.named_parameters():
        counts[name.rpartition(".")[0]] += parameter.numel()
    return {name: counts[name] for name, _ in model.named_modules() if counts[name]}


def _refuse_scripted(model: nn.Module) -> None:
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TPVError(
                f"{name or 'the model'} is a {type(module).__name__}, whose layers cannot be distinguished: "
                "give the nn.Module that it was made from."
            )


@contextmanager
def _flops_by_module(model: nn.Module, counter: FlopCounterMode) -> Iterator[Counter[str]]:
    """FLOPs by the innermost module of the model that runs, filled while the block runs."""
    names = {module: name for name, module in model.named_modules()}
    flops, running = Counter[str](), [""]

    def settle() -> None:
        flops[running[-1]] += counter.get_total_flops() - flops.total()

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            settle()
            running.append(names[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:
            settle()
            running.pop()

    hooks = nn.modules.module
    with hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave):
        yield flops
        settle()


@contextmanager
def _no_fused_attention_layers() -> Iterator[None]:
    """Without the kernels that run a whole ``nn.TransformerEncoderLayer`` in one operation that the counter
    does not know.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _rnn_layer(x: torch.Size, from_input: torch.Size, from_state: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(from_input) + prod(from_state))


def _cudnn_rnn(x: torch.Size, weights: list[torch.Size], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


_aten = torch.ops.aten
_UNKNOWN_TO_TORCH: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten.mkldnn_rnn_layer: _rnn_layer,
    _aten._cudnn_rnn: _cudnn_rnn,
    _aten.mv: lambda matrix, *_, **__: 2 * prod(matrix),
    _aten.dot: lambda left, *_, **__: 2 * prod(left),
    _aten.addmv: lambda bias, matrix, *_, **__: 2 * prod(matrix),
    # N pairs against (outputs, left, right) weights, as (N, 1, left, 1) and (1, outputs, left, right)
    _aten._trilinear: lambda left, weight, *_, **__: 2 * left[0] * prod(weight),
}
