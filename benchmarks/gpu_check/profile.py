"""Where the time goes: waits for the device, copies, random signs, and the sums of normalization layers."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import tpv
from benchmarks.gpu_check.cost import estimate, once, timed
from benchmarks.gpu_check.log import Fields, Log
from benchmarks.gpu_check.networks import NETWORKS, Network
from tpv.common.counters import signs
from tpv.jacobian.formulas import norm

_WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")


class Waits(TorchDispatchMode):
    """Counts operations that wait for the device, or copy to or from it, by the line that asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        target = kwargs.get("device") if name == "_to_copy" else None
        if name in _WAITING or (target is not None and torch.device(target).type != args[0].device.type):
            inner = [frame for frame in traceback.extract_stack() if "/tpv/" in frame.filename]
            if inner:
                self.lines[f"{Path(inner[-1].filename).name}:{inner[-1].lineno} {name.strip('_')}"] += 1
        return func(*args, **kwargs)


def where_the_time_goes(log: Log) -> None:
    """For each network: waits per estimate and per batch more, time in signs, the costliest operations."""
    small = log.device == "cpu"
    for build in NETWORKS:
        network = build(log.device, small)
        log.check(f"{network.name}: waits", lambda network=network: _waits(network))
        log.check(f"{network.name}: profile", lambda network=network: _profiled(network, log.device))
        log.check(f"{network.name}: signs", lambda network=network: _signs(network, log.device))
        del network
    log.check("sums of BatchNorm", lambda: _norms(log.device, small))


def _waits(network: Network) -> Fields:
    few = network.x[: min(8, len(network.x) // 4)]

    def lines(batches: int) -> Counter[str]:
        with Waits() as waits:
            tpv.estimate(network.model, [few] * batches, tpv.Isotropic(0.01), estimator=tpv.Hutchinson(1))
        return waits.lines

    two, four = lines(2), lines(4)
    more = {line: (count - two[line]) / 2 for line, count in four.items() if count > two[line]}
    shown = sorted(more.items(), key=lambda item: -item[1])[:12]
    return {
        "first batches": sum(two.values()),
        "per batch more": sum(more.values()),
        "lines, per batch more": "; ".join(f"{line} ×{count:g}" for line, count in shown),
        "lines, first batches": "; ".join(f"{line} ×{count}" for line, count in two.most_common(12)),
    }


def _profiled(network: Network, device: str) -> Fields:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    run = estimate(network, tpv.Hutchinson(1))
    seconds = once(run, device)
    with profile(activities=activities) as profiled:
        once(run, device)
    events = profiled.key_averages()
    on_device = device == "cuda"
    cost: Callable[[Any], float] = lambda e: e.self_device_time_total if on_device else e.self_cpu_time_total  # noqa: E731
    total = sum(cost(e) for e in events) / 1e6
    top = sorted(events, key=lambda e: -cost(e))[:10]
    counts = {
        e.key: e.count
        for e in events
        if "ynchronize" in e.key or "Memcpy" in e.key or "local_scalar" in e.key
    }
    return {
        "wall s": seconds,
        "busy s": total,
        "counts": "; ".join(f"{key} ×{count}" for key, count in counts.items()),
        "costliest": "; ".join(f"{e.key[:50]} {cost(e) / 1e4 / total:.0f} %" for e in top),
    }


def _signs(network: Network, device: str) -> Fields:
    n, k = min(64, len(network.x)), network.outputs
    rows = torch.arange(n, device=device)
    drawn = timed(lambda: signs(0, rows, k), device)
    run = estimate(Network(network.name, network.model, network.x[:n]), tpv.Hutchinson(1))
    run()
    return {
        "million signs/s": n * k / drawn / 1e6,
        "ms": 1e3 * drawn,
        "share of an estimate": drawn / once(run, device),
    }


def _norms(device: str, small: bool) -> Fields:
    shape = (32 if small else 1024, 16, 32, 32)
    x, g = torch.randn(shape, device=device), torch.randn(shape, device=device)
    n, c, p = shape[0], shape[1], shape[2] * shape[3]
    mean = torch.randn(c, device=device)
    flat = lambda t: t.reshape(n * c, 1, p)  # noqa: E731
    ways: dict[str, Callable[[], Any]] = {
        "plain sums": lambda: norm._plain_sums(g, x, mean),
        "without centring": lambda: ((g * x).sum((2, 3)), g.sum((2, 3))),
        "batched products": lambda: (torch.bmm(flat(g), flat(x).mT), g.sum((2, 3))),
        "group norm's kernel": lambda: torch.ops.aten.native_group_norm_backward(
            *(
                g.reshape(1, n * c, p),
                x.reshape(1, n * c, p),
                mean.repeat(n)[None],
                torch.ones(1, n * c, device=device),
            ),
            *(torch.ones(n * c, device=device), 1, n * c, p, n * c, [False, True, True]),
        ),
        "one read of both": lambda: (g.sum((2, 3)), x.sum((2, 3))),
    }
    fields: Fields = {}
    for name, run in ways.items():
        try:
            fields[f"{name}, ms"] = 1e3 * timed(run, device, 5)
        except RuntimeError as error:
            fields[f"{name}, ms"] = f"failed: {str(error)[:80]}"
    try:
        kernel, plain = ways["group norm's kernel"](), ways["plain sums"]()
        fields["kernel − plain"] = (kernel[1].reshape(n, c) - plain[0]).abs().max().item()
    except RuntimeError:
        pass
    return fields
