"""A target for ``tpv report``: a small BERT that classifies what a question asks for (TREC, six classes).

    TPV_DATA_DIR=... tpv report examples/trec_bert.py

``TPV_DATA_DIR`` is a folder laid out as on the Hugging Face hub. It must hold ``CogComp/trec``. The first use
trains the tokenizer and the network from scratch (about a minute on a CPU) and caches both in
``TPV_CACHE_DIR``, by default ~/.cache/tpv.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor
from training import cache_folder, data_root, fit, trained

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BertForSequenceClassification

title = "a small BERT on TREC questions"
SPECIAL = 5  # the ids below are [PAD], [UNK], [CLS], [SEP] and [MASK]


def questions(split: str) -> Dataset:
    """The columns text and coarse_label of the split "train" or "test"."""
    from datasets import load_dataset

    return load_dataset(str(data_root("CogComp/trec") / "CogComp" / "trec"), split=split)


@functools.cache
def tokenizer() -> Tokenizer:
    """WordPiece, trained on the training questions; adds [CLS] and [SEP], pads to the longest of a batch."""
    file = cache_folder("trec_bert") / "tokenizer.json"
    if not file.is_file():
        trained_tokenizer = BertWordPieceTokenizer()
        # with the prefix ## the trainer breaks ties differently in every process
        trained_tokenizer.train_from_iterator(
            questions("train")["text"], vocab_size=4000, wordpieces_prefix="", show_progress=False
        )
        trained_tokenizer.post_processor = BertProcessing(
            *((token, trained_tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]"))
        )
        trained_tokenizer.enable_padding()
        trained_tokenizer.save(str(file))
    return Tokenizer.from_file(str(file))


def encoded(texts: list[str]) -> dict[str, Tensor]:
    """The inputs of the network, each (N, length of the longest question)."""
    encodings = tokenizer().encode_batch(texts)
    return {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
    }


def distorted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three in ten tokens replaced by random ones, so that the network learns to cope with unknown words."""
    ids = batch["input_ids"]
    replaced = (torch.rand(ids.shape) < 0.3) & (ids >= SPECIAL)
    return batch | {
        "input_ids": torch.where(
            replaced, torch.randint(SPECIAL, tokenizer().get_vocab_size(), ids.shape), ids
        )
    }


def untrained(hidden: int = 128, layers: int = 2) -> BertForSequenceClassification:
    """A BERT with the tokenizer's vocabulary."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
    }
    vocabulary = tokenizer().get_vocab_size()
    config = BertConfig(
        vocab_size=vocabulary, max_position_embeddings=128, num_labels=6, initializer_range=0.05, **sizes
    )
    return BertForSequenceClassification(config)


def train() -> BertForSequenceClassification:
    """Ten epochs on distorted questions."""
    data, network = questions("train"), untrained()
    texts, y = list(data["text"]), torch.tensor(data["coarse_label"])

    def loss(indices: Tensor) -> Tensor:
        batch = distorted(encoded([texts[i] for i in indices]))
        return F.cross_entropy(network(**batch).logits, y[indices], label_smoothing=0.1)

    return fit(network, loss, len(texts), epochs=10, batch_size=64, lr=1e-3)


def model() -> BertForSequenceClassification:
    """The trained network in evaluation mode."""
    from transformers import BertForSequenceClassification

    return trained("trec_bert", BertForSequenceClassification, train)


def batches(split: str) -> list[dict[str, Tensor]]:
    """Batches of 50 questions with input_ids, attention_mask and labels."""
    return [
        encoded(part["text"]) | {"labels": torch.tensor(part["coarse_label"])}
        for part in questions(split).iter(batch_size=50)
    ]


def train_data() -> list[dict[str, Tensor]]:
    """5,452 questions that the network was trained on."""
    return batches("train")


def test_data() -> list[dict[str, Tensor]]:
    """500 held-out questions."""
    return batches("test")
