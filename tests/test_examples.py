"""The examples that train their own network: their data, and the whole path with a tiny network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cifar10_vit
import gpt2_small
import prune_and_finetune
import pytest
import torch
import torch.nn.functional as F
import training
import trec_bert
from torch import Tensor, nn

import tpv
from tpv.testing import assert_unchanged

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TPV_CACHE_DIR", str(tmp_path))
    trec_bert.tokenizer.cache_clear()
    gpt2_small.tokenizer.cache_clear()
    yield
    trec_bert.tokenizer.cache_clear()
    gpt2_small.tokenizer.cache_clear()


def check(model: nn.Module, data: object, examples: int) -> None:
    """The sweep agrees with finite differences of tiny noise."""
    noise = tpv.Isotropic(1e-4)
    with assert_unchanged(model):
        swept = tpv.estimate(model, data, noise, estimator=tpv.Hutchinson(4))
        drawn = tpv.estimate(model, data, noise, estimator=tpv.MonteCarlo(24))
    assert swept.n_examples == examples
    assert swept.value > 0
    assert abs(swept.value - drawn.value) < 4 * (swept.mc_stderr**2 + drawn.mc_stderr**2) ** 0.5


@pytest.mark.data
def test_questions_come_as_padded_batches() -> None:
    data = trec_bert.test_data()
    assert sum(len(batch["labels"]) for batch in data) == 500
    for batch in data:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert torch.equal(batch["input_ids"] != 0, batch["attention_mask"].bool())
    assert trec_bert.tokenizer().encode("What is TPV ?").tokens[0] == "[CLS]"
    distorted = trec_bert.distorted(data[0])
    assert torch.equal(distorted["input_ids"] < trec_bert.SPECIAL, data[0]["input_ids"] < trec_bert.SPECIAL)


@pytest.mark.data
def test_the_tokenizer_is_the_same_at_every_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = trec_bert.tokenizer().to_str()
    trec_bert.tokenizer.cache_clear()
    assert trec_bert.tokenizer().to_str() == first
    trec_bert.tokenizer.cache_clear()
    monkeypatch.setenv("TPV_CACHE_DIR", str(tmp_path / "again"))
    assert trec_bert.tokenizer().to_str() == first


@pytest.mark.data
def test_a_tiny_bert() -> None:
    torch.manual_seed(0)
    check(trec_bert.untrained(hidden=32, layers=1).eval(), trec_bert.test_data()[:1], 50)


@pytest.mark.data
def test_a_tiny_vision_transformer() -> None:
    torch.manual_seed(0)
    x = cifar10_vit.test_data()
    assert x.shape == (1000, 3, 32, 32)
    assert x.mean().abs() < 0.2
    check(cifar10_vit.untrained(hidden=32, layers=1).eval(), x[:16], 16)


@pytest.mark.data
def test_a_tiny_language_model() -> None:
    data = gpt2_small.test_data()
    assert [batch["input_ids"].shape for batch in data] == [(4, 64)] * 4
    assert (
        gpt2_small.tokenizer()
        .decode(data[0]["input_ids"][0].tolist())
        .startswith("How far is it from Denver to Aspen ?\n")
    )
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": gpt2_small.tokenizer().get_vocab_size()}
    check(gpt2_small.untrained(**sizes), [{"input_ids": batch["input_ids"][:, :8]} for batch in data[:2]], 8)


@pytest.mark.parametrize(("mirror", "shift"), [(False, 4), (True, 0)])
def test_augmentation_shifts_and_mirrors(mirror: bool, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32)
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.full(size, 4 + shift))
    monkeypatch.setattr(torch, "rand", lambda *size: torch.full(size, 0.0 if mirror else 1.0))
    images = cifar10_vit.augmented(x)
    assert (
        torch.equal(images, x.flip(3))
        if mirror
        else torch.equal(images[:, :, :-shift, :-shift], x[:, :, shift:, shift:])
    )


def test_a_network_is_trained_once() -> None:
    from transformers import ViTForImageClassification

    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 2
    trainings = []

    def train() -> nn.Module:
        network = cifar10_vit.untrained(hidden=32, layers=1)
        losses = trainings.append([]) or trainings[-1]

        def loss(indices: Tensor) -> Tensor:
            value = F.cross_entropy(network(x[indices]).logits, y[indices])
            losses.append(value.item())
            return value

        return training.fit(network, loss, len(x), epochs=4, batch_size=16, lr=1e-3)

    before = torch.get_rng_state()
    first, second = (training.trained("tiny", ViTForImageClassification, train) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(trainings) == 1
    assert sum(trainings[0][-4:]) < sum(trainings[0][:4])
    assert not second.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("target", "needed"),
    [(trec_bert, "CogComp/trec"), (cifar10_vit, "uoft-cs/cifar10"), (gpt2_small, "CogComp/trec")],
)
def test_without_data_the_example_names_what_to_download(
    target: ModuleType, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TPV_DATA_DIR", raising=False)
    with pytest.raises(SystemExit, match=needed):
        target.test_data()


def test_prune_fine_tune_save_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    loaded = prune_and_finetune.main(prune_and_finetune.digits(), str(tmp_path), calibration=256)
    accuracies = {line[:20].strip(): line[20:25] for line in capsys.readouterr().out.splitlines()}
    assert list(accuracies) == ["unpruned", "pruned, re-fitted", "fine-tuned", "saved and loaded"]
    assert accuracies["saved and loaded"] == accuracies["fine-tuned"]
    assert all(float(value) > 0.95 for value in accuracies.values())
    assert sum(p.numel() for p in loaded.parameters()) < 0.6 * sum(
        p.numel() for p in prune_and_finetune.digits().network().parameters()
    )


@pytest.mark.data
def test_cifar10_for_fine_tuning() -> None:
    task = prune_and_finetune.cifar10()
    x, y = task.train[0]
    assert (len(task.train), len(task.test), x.shape, y.shape) == (4000, 1000, (3, 32, 32), ())
    assert prune_and_finetune.accuracy(task.network(), task.test) == 0.915
    assert prune_and_finetune.flipped_and_shifted(torch.stack([x, x])).shape == (2, 3, 32, 32)
