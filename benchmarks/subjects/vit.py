"""A small vision transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.subjects.base import Spec
from benchmarks.subjects.images import images, words
from benchmarks.subjects.logits import Logits


@dataclass(frozen=True)
class ViT(Spec):
    """``ViTForImageClassification`` on 32×32 images in patches of 4×4."""

    width: int = 192
    layers: int = 6
    classes: int = 10
    name = "vit"
    share = 8

    @property
    def description(self) -> str:
        size = f"{self.layers} layers of width {self.width}, patches of 4×4, {self.classes} classes"
        return f"ViT, {size}, random weights; {words()}"

    def network(self) -> nn.Module:
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        return Logits(
            ViTForImageClassification(
                ViTConfig(
                    image_size=32,
                    patch_size=4,
                    hidden_size=self.width,
                    intermediate_size=4 * self.width,
                    num_hidden_layers=self.layers,
                    num_attention_heads=max(1, self.width // 64),
                    num_labels=self.classes,
                )
            )
        ).eval()

    def inputs(self, n: int) -> Tensor:
        return images(n)

    def small(self) -> ViT:
        return ViT(width=32, layers=2)
