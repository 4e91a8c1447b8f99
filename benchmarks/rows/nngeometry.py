"""NNGeometry: the Fisher matrix of a regression model with unit covariance is H_eff."""

from __future__ import annotations

import copy

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.row import Answer, Row, Run
from benchmarks.subjects import Subject


def trace(subject: Subject, batch: int) -> Run:
    from nngeometry.metrics import FIM
    from nngeometry.object.pspace import PMatImplicit

    model = copy.deepcopy(subject.model)
    loader = DataLoader(TensorDataset(subject.inputs), batch_size=batch)
    device = subject.inputs.device

    def run(seed: int) -> Answer:
        fisher = FIM(
            model,
            loader,
            PMatImplicit,
            variant="regression",
            device=device,
            function=lambda *d: model(d[0].to(device)).flatten(1),
        )
        return Answer(fisher.trace().detach().double().reshape(1).cpu())

    return run


ROWS = (
    Row(
        "NNGeometry",
        "FIM trace",
        trace,
        batches=(16, 32, 64),
        package="--no-deps nngeometry",
        note="PMatImplicit, variant='regression'",
        every_output=True,
    ),
)
