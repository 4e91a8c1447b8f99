"""The default estimator: which of the others, by the perturbation and the size of the data."""

from __future__ import annotations

from dataclasses import dataclass

from tpv.estimators.base import Estimator, EstimatorRun, Problem
from tpv.estimators.exact import Exact
from tpv.estimators.hutchinson import Hutchinson
from tpv.estimators.kernel import HutchPlusPlus
from tpv.estimators.linearized_mc import LinearizedMonteCarlo
from tpv.estimators.monte_carlo import MonteCarlo

_FEW_SWEEPS = 8192


@dataclass(frozen=True)
class Auto(Estimator):
    """The cheapest estimator that is exact where that is affordable. The first rule that applies decides:

    1. a fixed displacement (:class:`tpv.Displacement`, :class:`tpv.Masking`, actual rounding):
       :class:`tpv.Exact`, one Jacobian-vector product;
    2. networks that are trained again (:class:`tpv.Retraining`): :class:`tpv.MonteCarlo` with its ``runs``
       as draws, for the result of a training is not linearized;
    3. a covariance that is known by its factor (:class:`tpv.LabelNoise`): :class:`tpv.Exact` if the kernel is
       written out (by default where that takes less than 2 GiB), else :class:`tpv.HutchPlusPlus`;
    4. no variances, so draws are all there is: :class:`tpv.LinearizedMonteCarlo`;
    5. independent entries: :class:`tpv.Exact` for a single output, or where examples × outputs ≤ 8192;
       else, and where the number of examples is unknown, :class:`tpv.Hutchinson`, one probe per example.

    A result's ``metadata["estimator"]`` names the choice and ``metadata["auto"]`` the reason.

    Cost: that of the estimator it chooses.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2).double()
        >>> result = tpv.estimate(model, torch.ones(5, 3).double(), tpv.Isotropic(0.1), estimator=tpv.Auto())
        >>> result.metadata["estimator"], result.metadata["auto"]
        ('Exact()', 'independent entries, and 5 examples × 2 outputs ≤ 8192')
    """

    def begin(self, problem: Problem) -> EstimatorRun:
        """Choose, and start that."""
        return self.resolved(problem).begin(problem)

    def resolved(self, problem: Problem) -> Estimator:
        """The choice for this problem, with its reason."""
        bound = problem.bound
        if bound.deterministic:
            return _Choice(Exact(), "one fixed displacement")
        if bound.finite_draws is not None:
            return _Choice(MonteCarlo(bound.finite_draws), "networks are trained again, not linearized")
        if bound.factor is not None:
            dense = bound.factor.dense
            return _Choice(
                Exact() if dense else HutchPlusPlus(), f"the kernel is {'' if dense else 'not '}written out"
            )
        if bound.variance() is None:
            return _Choice(LinearizedMonteCarlo(), "the perturbation has draws and no variances")
        return _for_independent_entries(problem.examples, problem.outputs)


@dataclass(frozen=True)
class _Choice(Estimator):
    """Auto's choice, with its reason."""

    estimator: Estimator
    reason: str

    def begin(self, problem: Problem) -> EstimatorRun:
        run = self.estimator.begin(problem)
        run.reason = self.reason
        return run


def _for_independent_entries(examples: int | None, outputs: int) -> _Choice:
    size = f"{'an unknown number of' if examples is None else examples} examples × {outputs} outputs"
    if outputs == 1:
        return _Choice(Exact(), "independent entries, and a single output")
    if examples is not None and examples * outputs <= _FEW_SWEEPS:
        return _Choice(Exact(), f"independent entries, and {size} ≤ {_FEW_SWEEPS}")
    relation = "may be more than" if examples is None else ">"
    return _Choice(Hutchinson(), f"independent entries, and {size} {relation} {_FEW_SWEEPS}")
