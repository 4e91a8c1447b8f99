"""Rules and fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose data or device is missing."""
    missing = {}
    if not torch.cuda.is_available():
        missing["cuda"] = "no CUDA device on this machine"
    if not os.environ.get("TPV_DATA_DIR"):
        missing["data"] = "TPV_DATA_DIR is not set: no data sets and no trained weights"
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """On tiny networks, threads that wait for each other cost more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
