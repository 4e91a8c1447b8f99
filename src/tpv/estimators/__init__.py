"""How TPV is computed, one algorithm per file."""

from tpv.estimators.auto import Auto
from tpv.estimators.base import Estimator
from tpv.estimators.exact import Exact
from tpv.estimators.hutchinson import Hutchinson
from tpv.estimators.kernel import HutchPlusPlus
from tpv.estimators.linearized_mc import LinearizedMonteCarlo
from tpv.estimators.monte_carlo import MonteCarlo

__all__ = [
    "Auto",
    "Estimator",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "LinearizedMonteCarlo",
    "MonteCarlo",
]
