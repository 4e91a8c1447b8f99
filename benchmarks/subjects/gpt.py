"""A small GPT-2, as a language model and as a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects.base import Spec
from benchmarks.subjects.logits import Logits


@dataclass(frozen=True)
class GPT(Spec):
    """``GPT2LMHeadModel`` with tied embeddings: ``length`` × ``vocabulary`` outputs a sequence."""

    width: int = 256
    layers: int = 4
    vocabulary: int = 4096
    length: int = 64
    name = "gpt"
    share = 8

    @property
    def description(self) -> str:
        size = f"{self.layers} layers of width {self.width}, vocabulary {self.vocabulary}, tied embeddings"
        return f"GPT-2, {size}, random weights; random sequences of {self.length} tokens, every logit of every token an output"

    def network(self) -> nn.Module:
        from transformers import GPT2LMHeadModel

        torch.manual_seed(0)
        return Logits(GPT2LMHeadModel(config(self))).eval()

    def inputs(self, n: int) -> Tensor:
        return tokens(n, self)

    def small(self) -> GPT:
        return GPT(width=32, layers=2, vocabulary=32, length=6)


@dataclass(frozen=True)
class GPTClassifier(Spec):
    """``GPT2Model`` with a linear head on the last token, so that methods with a pass per output can be compared too.

    Not ``GPT2ForSequenceClassification``: its search for the padding cannot be vmapped.
    """

    width: int = 256
    layers: int = 4
    vocabulary: int = 4096
    length: int = 64
    classes: int = 10
    name = "gpt-classifier"
    share = 8

    @property
    def description(self) -> str:
        size = f"{self.layers} layers of width {self.width}, vocabulary {self.vocabulary}"
        return f"GPT-2, {size}, {self.classes} classes read from the last token, random weights; random sequences of {self.length} tokens"

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return _LastToken(config(self), self.classes).eval()

    def inputs(self, n: int) -> Tensor:
        return tokens(n, self)

    def small(self) -> GPTClassifier:
        return GPTClassifier(width=32, layers=2, vocabulary=32, length=6)


class _LastToken(nn.Module):
    def __init__(self, config: Any, classes: int) -> None:
        from transformers import GPT2Model

        super().__init__()
        self.trunk = GPT2Model(config)
        self.head = nn.Linear(config.n_embd, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).last_hidden_state[:, -1])


def config(spec: GPT | GPTClassifier) -> Any:
    """Of transformers; heads are 64 wide."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=spec.vocabulary,
        n_positions=spec.length,
        n_embd=spec.width,
        n_layer=spec.layers,
        n_head=max(1, spec.width // 64),
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )


def tokens(n: int, spec: GPT | GPTClassifier) -> Tensor:
    """(n, length), uniform."""
    return torch.randint(0, spec.vocabulary, (n, spec.length), generator=torch.Generator().manual_seed(0))
