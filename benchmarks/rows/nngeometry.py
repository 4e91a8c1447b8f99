"""NNGeometry: the Fisher matrix of a regression model with unit covariance is H_eff."""

from __future__ import annotations

import copy

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.row import Answer, Row, Run
from benchmarks.subject import Subject


def trace(subject: Subject, batch: int) -> Run:
    from nngeometry.metrics import FIM
    from nngeometry.object.pspace import PMatImplicit

    model = copy.deepcopy(subject.model)
    loader = DataLoader(TensorDataset(subject.images.clone()), batch_size=batch)

    def run(seed: int) -> Answer:
        return Answer(FIM(model, loader, PMatImplicit, variant="regression").trace().detach().double().reshape(1))

    return run


ROWS = (
    Row("NNGeometry", "FIM trace", trace, batches=(32, 16, 64), package="--no-deps nngeometry", note="PMatImplicit, variant='regression'"),
)
