"""Ways to compute TPV, one algorithm per file."""

from tpv.estimators.base import Estimator
from tpv.estimators.exact import Exact
from tpv.estimators.hutchinson import Hutchinson
from tpv.estimators.hutchplusplus import HutchPlusPlus
from tpv.estimators.monte_carlo import LinearizedMonteCarlo, MonteCarlo

__all__ = ["Estimator", "Exact", "HutchPlusPlus", "Hutchinson", "LinearizedMonteCarlo", "MonteCarlo"]
