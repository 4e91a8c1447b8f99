"""The fingerprint of a report's subject includes all that its numbers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tpv.report.subject import Subject


def a_subject() -> Subject:
    torch.manual_seed(0)
    train = [(torch.randn(4, 3), torch.zeros(4)) for _ in range(3)]
    return Subject("net", nn.Linear(3, 2), train, [torch.randn(4, 3), torch.randn(2, 3)], digest="abc")


def changed(change: Callable[[Subject], object]) -> Subject:
    subject = a_subject()
    with torch.no_grad():
        change(subject)
    return subject


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.train[0][0].add_(1),
        lambda s: s.train[2][0][3, 2].add_(1e-3),
        lambda s: s.train[2][1].add_(1),
        lambda s: s.test[1].add_(1),
        lambda s: s.test.pop(),
        lambda s: s.train.reverse(),
        lambda s: s.model.weight.add_(1e-6),
    ],
)
def test_data_and_weights_count(change: Callable[[Subject], object]) -> None:
    assert a_subject().fingerprint(None) == a_subject().fingerprint(None)
    assert changed(change).fingerprint(None) != a_subject().fingerprint(None)


def test_what_is_not_measured_does_not_count() -> None:
    later = changed(lambda s: s.train[2][0].add_(1))
    assert later.fingerprint(8) == a_subject().fingerprint(8)
    assert later.fingerprint(9) != a_subject().fingerprint(9)


def test_settings_the_file_and_a_missing_data_set_count() -> None:
    subject = a_subject()
    others = [
        dataclasses.replace(subject, digest="abd").fingerprint(None),
        dataclasses.replace(subject, test=None).fingerprint(None),
        dataclasses.replace(subject, train=subject.test, test=None).fingerprint(None),
        subject.fingerprint(None, "seed 1"),
    ]
    assert len({subject.fingerprint(None), *others}) == 5


def test_random_numbers_stay_where_they_were() -> None:
    shuffled = DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4, shuffle=True)
    subject = dataclasses.replace(a_subject(), train=shuffled)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    subject.fingerprint(None)
    assert torch.equal(torch.get_rng_state(), state)
