"""How many examples go through at a time."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpv.model.batches import batch_size, narrow
from tpv.model.linearization import Linearization

SCRATCH_BYTES = 2**28
_CPU_BYTES, _LARGEST_ON_CPU, _LARGEST = 2**29, 256, 4096


def choose_chunk_size(lin: Linearization, batch: Any, scratch: int = 0, *, backward: bool = True) -> int:
    """Examples per chunk, a power of two, so that the work of a sweep stays within 512 MiB and 256 examples
    (on a GPU, a quarter of what is free and 4096 examples).

    An example counts with twice what autograd saves for it, because layer inputs and output gradients are in
    memory as well, and with twice the ``scratch`` numbers that a layer writes out; without
    ``backward`` passes, with half of what autograd would save.
    """
    saved = _saved_bytes(lin, narrow(batch, 0, 1, batch_size(batch)))
    weight = next(iter(lin.weights.values()))
    graph_bytes = 2 * saved if backward else saved // 2
    fitting = _budget(weight.device) // max(graph_bytes + 2 * scratch * max(4, weight.element_size()), 1)
    largest = _LARGEST if weight.is_cuda else _LARGEST_ON_CPU
    return min(largest, 1 << (max(fitting, 1).bit_length() - 1))


def _saved_bytes(lin: Linearization, example: Any) -> int:
    """Bytes that autograd keeps for the backward pass of one example, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in lin.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = max(
                sizes.get(storage.data_ptr(), 0), tensor.numel() * tensor.element_size()
            )
        return tensor.detach()  # the tensor itself would tie the graph to itself

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = lin(example)
    return sum(sizes.values()) + outputs.numel() * outputs.element_size()


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return available_bytes(device) // 4
    return _CPU_BYTES


def available_bytes(device: torch.device) -> int:
    """Memory that could be allocated now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return (
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            if hasattr(os, "sysconf")
            else 4 * 2**30
        )


def release_memory() -> None:
    """Give back what an interrupted chunk of work still holds."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
