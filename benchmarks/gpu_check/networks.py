"""The networks whose cost is measured, with random weights; small ones for a run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cifar10_resnet20 import CifarResNet
from torch import Tensor, nn

from benchmarks.subjects.logits import Logits


@dataclass(frozen=True)
class Network:
    """A network and its inputs, on the device."""

    name: str
    model: nn.Module
    x: Tensor

    @property
    def outputs(self) -> int:
        """K, of one example."""
        with torch.no_grad():
            return self.model(self.x[:1])[0].numel()


def resnet20(device: str, small: bool) -> Network:
    """ResNet-20 on 32 × 32 images, BatchNorm's statistics set by its inputs."""
    torch.manual_seed(0)
    model, x = CifarResNet(20, 10), torch.randn(64 if small else 1024, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(x[:256])
    return Network("ResNet-20", model.eval().to(device), x.to(device))


def vit(device: str, small: bool) -> Network:
    """ViT-B/16 on 224 × 224 images; small: ViT of width 64 on 32 × 32."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "intermediate_size": 128}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**(sizes if small else {}), num_labels=10 if small else 1000)
    x = torch.randn(32, 3, 32, 32) if small else torch.randn(256, 3, 224, 224)
    return Network("ViT-B/16", Logits(ViTForImageClassification(config)).eval().to(device), x.to(device))


def gpt2(device: str, small: bool) -> Network:
    """GPT-2 small on 64 sequences of 512 tokens; small: two layers of width 64, 8 × 32 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 512} if small else {}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    config = GPT2Config(**sizes, **ends)
    x = torch.randint(0, config.vocab_size, (8, 32) if small else (64, 512))
    return Network("GPT-2 small", Logits(GPT2LMHeadModel(config)).eval().to(device), x.to(device))


NETWORKS = (resnet20, vit, gpt2)
