"""The library's contract as checks that users can call in their own tests."""

from tpv.testing.dense import dense_jacobian, dense_tpv
from tpv.testing.model import ModelCheck, check_model
from tpv.testing.perturbation import check_perturbation
from tpv.testing.unchanged import assert_unchanged

__all__ = [
    "ModelCheck",
    "assert_unchanged",
    "check_model",
    "check_perturbation",
    "dense_jacobian",
    "dense_tpv",
]
