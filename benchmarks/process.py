"""A fresh process for every measurement: no warm caches, no hooks, no memory of another library."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
J = TypeVar("J")
_IMPORTED = [
    "benchmarks.measure",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.vit.modeling_vit",
]


def fresh(function: Callable[[J], T], job: J, threads: int | None = None) -> T:
    """``function(job)`` in a process that ends with it, with ``threads`` threads or
    torch's default.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(1, context, initializer=_start, initargs=(threads,)) as pool:
        return pool.submit(function, job).result()


def _start(threads: int | None) -> None:
    """Quiet, and in float32 throughout: TensorFloat-32 would distort the comparison of values."""
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if threads is not None:
        torch.set_num_threads(threads)
