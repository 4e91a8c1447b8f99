"""What a report is about: a network, its data, and their fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from tpv.common.fingerprint import RunningFingerprint
from tpv.report.view import View


@dataclass(frozen=True)
class Subject:
    """A trained network with its data.

    Attributes:
        title: its name for the report.
        model: the trained network.
        train, test: data as in :func:`tpv.estimate`; ``test`` may be None.
        forward: ``(model, batch) -> outputs``, or None.
        digest: a hash of the file that defines it.
    """

    title: str
    model: nn.Module
    train: Any
    test: Any = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    digest: str = ""

    def fingerprint(self, limit: int | None, *settings: object) -> str:
        """Of the weights, the defining file, the first ``limit`` examples of each data set (all, for None),
        the settings, and the versions of tpv and torch. The global random numbers stay where they were.

        Cost: a pass over the data, without the network.
        """
        running = RunningFingerprint()
        running.update(self.model, self.digest, settings, version("tpv"), torch.__version__)
        with torch.random.fork_rng(devices=[]):
            for data in (self.train, self.test):
                running.update("data")
                for _ in running.reading(() if data is None else View(data, limit, None)):
                    pass
        return running.hexdigest()
