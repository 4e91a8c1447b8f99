"""Products with the Jacobian: one forward pass, then backward passes that stop at layers.

Imports go one way, from top to bottom:

* ``formulas/``: per-example gradients of a layer by its formula (**a new layer type goes here**);
* ``fallback/``: of any other module, or of the whole model;
* ``routes/``: which of these each parameter takes, why, and the proofs;
* ``calls``, ``backward``, ``reducers``, ``batch_pass``: one batch by a given table of routes;
* ``sweep``: the loop that plans, proves, and runs batches again where a proof fails.
"""

from tpv.jacobian.routes.table import RouteTable
from tpv.jacobian.sweep import Sweep

__all__ = ["RouteTable", "Sweep"]
