"""Wall-clock time of a call, including the GPU's work."""

from __future__ import annotations

import time

import torch

from benchmarks.row import Answer, Run


def seconds(run: Run, seed: int, device: str) -> tuple[float, Answer | None]:
    _wait(device)
    start = time.perf_counter()
    answer = run(seed)
    _wait(device)
    return time.perf_counter() - start, answer


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
