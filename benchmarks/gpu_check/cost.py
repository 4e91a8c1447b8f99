"""Cost of estimates in units of a plain forward and backward pass over the same batch."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import tpv
from benchmarks.gpu_check.log import Fields, Log
from benchmarks.gpu_check.networks import NETWORKS, Network


def timed(run: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """Median seconds of a call, after one that is not counted."""
    run()
    return statistics.median(once(run, device) for _ in range(repeats))


def once(run: Callable[[], Any], device: str) -> float:
    """Seconds of a call, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """float32 without TF32, float32 with it, or autocast to bfloat16."""
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "TF32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches


def plain(network: Network) -> Callable[[], Any]:
    """A forward and backward pass over the batch, halved where memory does not suffice."""
    parameters = list(network.model.parameters())
    size = [len(network.x)]

    def run() -> None:
        while True:
            try:
                for x in network.x.split(size[0]):
                    torch.autograd.grad(network.model(x).float().sum(), parameters)
                return
            except torch.OutOfMemoryError:
                size[0] //= 2
            gc.collect()
            torch.cuda.empty_cache()

    return run


def estimate(network: Network, estimator: Any, **settings: Any) -> Callable[[], tpv.TPVResult]:
    """An estimate of the batch."""
    return lambda: tpv.estimate(
        network.model, [network.x], tpv.Isotropic(0.01), estimator=estimator, **settings
    )


def table(log: Log) -> None:
    """One probe, first and repeated, and Exact per cotangent for ResNet-20, at three precisions."""
    small = log.device == "cpu"
    for build in NETWORKS:
        network = build(log.device, small)
        for name in ("float32", "bf16") if small else ("float32", "TF32", "bf16"):
            log.check(
                f"{network.name}, {name}", lambda network=network, name=name: _row(network, name, log.device)
            )
        del network


def _row(network: Network, name: str, device: str) -> Fields:
    with precision(name, device):
        unit = timed(plain(network), device)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = estimate(network, tpv.Hutchinson(1))
        first = once(run, device)
        result = run()
        repeated = statistics.median(once(run, device) for _ in range(2))
        fields: Fields = {
            "examples": len(network.x),
            "chunk": result.metadata["chunk_size"],
            "plain ms": 1e3 * unit,
            "first u": first / unit,
            "repeated u": repeated / unit,
            "value": result.value,
        }
        if device == "cuda":
            fields["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        if network.name == "ResNet-20":
            fields["Exact u per cotangent"] = (
                once(estimate(network, tpv.Exact()), device) / unit / network.outputs
            )
        if network.name != "GPT-2 small":
            whole = estimate(network, tpv.Hutchinson(1), chunk_size=len(network.x))
            fields["one chunk u"] = timed(whole, device, 1) / unit
    return fields


def fixed(log: Log) -> None:
    """The fixed cost: ResNet-20 by number of examples, in plain passes over one example of a large batch."""
    small = log.device == "cpu"
    network = NETWORKS[0](log.device, small)
    each = timed(plain(network), log.device) / len(network.x)

    def row(n: int) -> Fields:
        part = Network(network.name, network.model, network.x[:n])
        seconds = timed(estimate(part, tpv.Hutchinson(1)), log.device)
        return {
            "ms": 1e3 * seconds,
            "plain ms": 1e3 * timed(plain(part), log.device),
            "examples' worth": seconds / each,
        }

    for n in (4, 16) if small else (16, 64, 256, 1024):
        log.check(f"ResNet-20, {n} images", lambda n=n: row(n))
