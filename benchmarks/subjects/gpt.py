"""A small GPT-2, as a language model and as a classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from benchmarks.subjects.base import Spec
from benchmarks.subjects.logits import Logits


@dataclass(frozen=True)
class _GPT2(Spec):
    """Its size and its sequences."""

    width: int = 256
    layers: int = 4
    vocabulary: int = 4096
    length: int = 64
    share = 8

    @property
    def size(self) -> str:
        return f"{self.layers} layers of width {self.width}, vocabulary {self.vocabulary}"

    def config(self) -> Any:
        """Of transformers; heads are 64 wide."""
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=self.length,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=max(1, self.width // 64),
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )

    def inputs(self, n: int) -> Tensor:
        """(n, length) tokens, uniform."""
        return torch.randint(0, self.vocabulary, (n, self.length), generator=torch.Generator().manual_seed(0))

    def small(self) -> Self:
        return replace(self, width=32, layers=2, vocabulary=32, length=6)


@dataclass(frozen=True)
class GPT(_GPT2):
    """``GPT2LMHeadModel`` with tied embeddings: ``length`` × ``vocabulary`` outputs a sequence."""

    name = "gpt"

    @property
    def description(self) -> str:
        tied = f"{self.size}, tied embeddings"
        data = f"random sequences of {self.length} tokens, every logit of every token is an output"
        return f"GPT-2, {tied}, random weights; {data}"

    def network(self) -> nn.Module:
        from transformers import GPT2LMHeadModel

        torch.manual_seed(0)
        return Logits(GPT2LMHeadModel(self.config())).eval()


@dataclass(frozen=True)
class GPTClassifier(_GPT2):
    """``GPT2Model`` with a linear head on the last token, so that methods that need one pass per output can
    be compared too.

    Not ``GPT2ForSequenceClassification``: its search for padding tokens cannot be vmapped.
    """

    classes: int = 10
    name = "gpt-classifier"

    @property
    def description(self) -> str:
        head = f"{self.classes} classes predicted from the last token"
        return f"GPT-2, {self.size}, {head}, random weights; random sequences of {self.length} tokens"

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return _LastToken(self.config(), self.classes).eval()


class _LastToken(nn.Module):
    def __init__(self, config: Any, classes: int) -> None:
        from transformers import GPT2Model

        super().__init__()
        self.trunk = GPT2Model(config)
        self.head = nn.Linear(config.n_embd, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).last_hidden_state[:, -1])
