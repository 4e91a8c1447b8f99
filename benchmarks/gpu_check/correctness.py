"""The same numbers on the device as on the CPU, the same bits twice, and what happens without memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import tpv
from benchmarks.gpu_check.log import Fields, Log, same
from benchmarks.gpu_check.networks import resnet20
from tpv.model.batches import move

ARCHITECTURES = (
    *("ResNet", "ResNet, bottleneck", "RegNet", "MobileNetV2", "EfficientNet", "SegFormer", "U-Net"),
    *(
        "DenseNet",
        "MobileViT",
        "LeViT",
        "PoolFormer",
        "ConvNeXt",
        "squeeze and excitation",
        "in-place residuals",
    ),
    *("patches after BatchNorm", "LSTM", "MultiheadAttention", "TransformerEncoder, padded", "spectral norm"),
    *("sharing", "raw parameters", "Mixer", "embedding bags", "ViT", "Swin", "BERT", "GPT-2", "Llama"),
    *("Wav2Vec2", "CLIP", "Whisper", "Mamba", "Mixtral", "T5"),
)


_TOLERANCES = {"LeViT": 1e-6}
"""Its hardswish multiplies by 1/6 rounded to float32 on CUDA (3e-8), in float64 too; the CPU's is exact."""


def architectures(log: Log) -> None:
    """Exact in float64 on the zoo's networks, against the value on the CPU."""
    from zoo import ZOO

    by_name = {architecture.name: architecture for architecture in ZOO}
    for name in ARCHITECTURES:
        log.check(name, lambda name=name: _architecture(by_name[name], log.device))


def _architecture(architecture: Any, device: str) -> Fields:
    def value(where: str) -> tpv.TPVResult:
        model, batch = architecture.model().to(where), move(architecture.batch(), where)
        with architecture.context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tpv.estimate(
                model, [batch], tpv.Isotropic(0.3), estimator=tpv.Exact(), forward=architecture.forward
            )

    expected, measured = value("cpu"), value(device)
    slow = {k: v for r in (expected, measured) for k, v in [("slow", len(r.metadata.get("slow_routes", {})))]}
    return same(measured.value, expected.value, _TOLERANCES.get(architecture.name, 1e-9)) | slow


def _network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))
    return model.double().eval(), torch.randn(40, 3, 8, 8).double()


def perturbations(log: Log) -> None:
    """Each perturbation and estimator, label noise and pruning: device against CPU, from the same draws."""
    g = torch.Generator().manual_seed(1)
    retrained = {n: p + 0.01 * torch.randn(p.shape, generator=g) for n, p in _network()[0].named_parameters()}
    noise = lambda x: tpv.LabelNoise(0.1, x[:20], tpv.Ridge(gamma=0.1))  # noqa: E731
    cases: dict[str, tuple[Callable[[Tensor], Any], Any, float]] = {
        "Isotropic, Hutchinson(1)": (lambda x: tpv.Isotropic(0.1), tpv.Hutchinson(1), 1e-9),
        "Isotropic, Hutchinson(3)": (lambda x: tpv.Isotropic(0.1), tpv.Hutchinson(3), 1e-9),
        "Isotropic, LinearizedMonteCarlo": (lambda x: tpv.Isotropic(0.1), tpv.LinearizedMonteCarlo(4), 1e-6),
        "Isotropic, MonteCarlo": (lambda x: tpv.Isotropic(0.1), tpv.MonteCarlo(4), 1e-6),
        "Quantization, noise": (lambda x: tpv.Quantization(bits=4), tpv.Exact(), 1e-9),
        "Quantization, actual": (lambda x: tpv.Quantization(bits=4, error="actual"), tpv.Exact(), 1e-9),
        "Displacement": (lambda x: tpv.Displacement(move(retrained, x.device)), tpv.Exact(), 1e-9),
        "Masking": (
            lambda x: tpv.Masking(
                {
                    "0.weight": torch.ones(8, 1, 1, 1, device=x.device).index_fill(
                        0, torch.tensor([1, 4], device=x.device), 0
                    )
                }
            ),
            tpv.Exact(),
            1e-9,
        ),
        "LabelNoise, Exact": (noise, tpv.Exact(), 1e-6),
        "LabelNoise, LinearizedMonteCarlo": (noise, tpv.LinearizedMonteCarlo(4), 1e-6),
    }
    for name, (perturbation, estimator, tolerance) in cases.items():

        def value(where: str, perturbation: Any = perturbation, estimator: Any = estimator) -> float:
            model, x = _network()
            x = x.to(where)
            return tpv.estimate(model.to(where), x, perturbation(x), estimator=estimator).value

        log.check(name, lambda value=value, t=tolerance: same(value(log.device), value("cpu"), t))
    log.check("linearity", lambda: _linearity(log.device))
    log.check("prune to half the parameters", lambda: _pruned(log.device))


def _linearity(device: str) -> Fields:
    def value(where: str) -> float:
        model, x = _network()
        return float(tpv.linearity(model.to(where), x.to(where), tpv.Quantization(bits=4)).value)

    return same(value(device), value("cpu"), 1e-6)


def _pruned(device: str) -> Fields:
    def shapes(where: str) -> list[tuple[int, ...]]:
        model, x = _network()
        result = tpv.prune(model.float().to(where), x.float().to(where), "params=0.5")
        return [tuple(p.shape) for p in result.model.parameters()]

    found, expected = shapes(device), shapes("cpu")
    return {"value": str(found[0]), "result": "ok" if found == expected else f"DIFFERENT: {expected}"}


def repeatability(log: Log) -> None:
    """The same seed gives the same bits; chunks, batches and devices give the same probes."""
    network = resnet20(log.device, small=True)

    def value(model: nn.Module, x: Tensor, **settings: Any) -> float:
        return tpv.estimate(model, x, tpv.Isotropic(0.1), estimator=tpv.Hutchinson(2), **settings).value

    first = value(network.model, network.x)
    log.check("twice, float32", lambda: same(value(network.model, network.x), first, 0.0))
    model, x = copy.deepcopy(network.model).double(), network.x.double()
    whole = value(model, x)
    log.check("twice, float64", lambda: same(value(model, x), whole, 0.0))
    log.check("chunks of 7, float64", lambda: same(value(model, x, chunk_size=7), whole, 1e-10))
    log.check("batches of 24, float64", lambda: same(value(model, list(x.split(24))), whole, 1e-10))
    log.check("CPU, float64", lambda: same(value(copy.deepcopy(model).cpu(), x.cpu()), whole, 1e-9))
    log.check(
        "CPU, float32", lambda: same(value(copy.deepcopy(network.model).cpu(), network.x.cpu()), first, 1e-3)
    )
    last = (
        network.model.to(memory_format=torch.channels_last),
        network.x.to(memory_format=torch.channels_last),
    )
    log.check("channels last, float32", lambda: same(value(*last), first, 1e-3))


_FLOAT32 = 1e-4


def memory(log: Log) -> None:
    """With little memory, the chunk is halved until it fits, and the value stays, to what float32 leaves:
    another chunk size and less memory choose other kernels.
    """
    network = resnet20(log.device, small=log.device == "cpu")

    def run(chunk: int | None) -> tpv.TPVResult:
        return tpv.estimate(
            network.model, [network.x], tpv.Isotropic(0.1), estimator=tpv.Hutchinson(1), chunk_size=chunk
        )

    def squeezed() -> Fields:
        expected = run(None)
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 600 * 2**20) / total)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                squeezed_result = run(1024)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        halved = sum("out of memory" in str(w.message) for w in caught)
        chunks = {
            "chunk": squeezed_result.metadata["chunk_size"],
            "chosen chunk": expected.metadata["chunk_size"],
        }
        return same(squeezed_result.value, expected.value, _FLOAT32) | {"halvings": halved} | chunks

    if log.device == "cuda":
        log.check("1024 images at once in 600 MiB", squeezed)
