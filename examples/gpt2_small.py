"""A target for ``tpv report``, and a script: a language model of the size of GPT-2 small, 124 million
parameters.

    TPV_DATA_DIR=... tpv report examples/gpt2_small.py -p 'Quantization(bits=8)'
    TPV_DATA_DIR=... python examples/gpt2_small.py

``TPV_DATA_DIR`` is a folder laid out as on the Hugging Face hub. It must hold ``CogComp/trec``; if it also
holds ``gpt2``, a folder of ``save_pretrained`` with model and tokenizer, that is the model, otherwise one
with random weights.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer
from torch import Tensor
from training import data_root

import tpv

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

title = "GPT-2 small on TREC questions"
LENGTH, BATCH = 64, 4


def pretrained() -> str | None:
    """The folder of trained weights, if there is one."""
    folder = data_root("CogComp/trec") / "gpt2"
    return str(folder) if (folder / "config.json").is_file() else None


def untrained(**sizes: int) -> GPT2LMHeadModel:
    """A network with random weights; its input and output embeddings are one tensor."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(use_cache=False, **sizes)).eval()


def model() -> GPT2LMHeadModel:
    """The network in evaluation mode."""
    from transformers import GPT2LMHeadModel

    folder = pretrained()
    return (
        GPT2LMHeadModel.from_pretrained(folder, use_safetensors=True, use_cache=False).eval()
        if folder
        else untrained()
    )


def texts(split: str) -> list[str]:
    """The questions of the split "train" or "test"."""
    from datasets import load_dataset

    return list(load_dataset(str(data_root("CogComp/trec") / "CogComp" / "trec"), split=split)["text"])


@functools.cache
def tokenizer() -> Tokenizer | ByteLevelBPETokenizer:
    """GPT-2's own if its weights are available, otherwise a byte-level one trained on the training questions,
    with fewer tokens.
    """
    folder = pretrained()
    if folder:
        return Tokenizer.from_file(f"{folder}/tokenizer.json")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts("train"), vocab_size=8000, show_progress=False)
    return trained


def sequences(split: str, count: int) -> list[dict[str, Tensor]]:
    """``count`` sequences of 64 tokens, questions concatenated, in batches of four."""
    ids = tokenizer().encode("\n".join(texts(split))).ids[: count * LENGTH]
    return [{"input_ids": part} for part in torch.tensor(ids).view(count, LENGTH).split(BATCH)]


def train_data() -> list[dict[str, Tensor]]:
    """32 sequences."""
    return sequences("train", 32)


def test_data() -> list[dict[str, Tensor]]:
    """16 sequences."""
    return sequences("test", 16)


if __name__ == "__main__":
    print(tpv.estimate(model(), test_data(), tpv.Quantization(bits=8)))
