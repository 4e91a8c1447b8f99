"""φ(K) times a block of vectors, from products with K alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpv._errors import TPVError

_log = logging.getLogger("tpv")


@dataclass
class Krylov:
    r"""Orthonormal V whose span contains B, KB, K²B, … and the products KV.

    Galerkin's approximation in it is :math:`\varphi(K)B \approx V \varphi(V^\top K V) V^\top B`, exact if the span is invariant.
    A block of right-hand sides shares the span, so that each profits from the directions that the others have found: the
    large eigenvectors are found by all together, and deflate all.

    Attributes:
        basis, image: V and KV, (rows, q), float64.
        products: number of vectors that K has been applied to.
    """

    multiply: Callable[[Tensor], Tensor]
    basis: Tensor
    image: Tensor
    products: int = 0

    @classmethod
    def begin(cls, multiply: Callable[[Tensor], Tensor], start: Tensor) -> Krylov:
        """The span of the block itself."""
        empty = start.new_zeros(len(start), 0, dtype=torch.float64)
        krylov = cls(multiply, empty, empty)
        krylov.extend(start.double())
        return krylov

    def extend(self, block: Tensor) -> int:
        """Add to the span what is new in a block; how many directions that were."""
        for _ in range(2):  # twice is enough
            block = block - self.basis @ (self.basis.T @ block)
        scale = torch.linalg.vector_norm(block, dim=0)
        q, s, _ = torch.linalg.svd(block / scale.clamp(min=torch.finfo(torch.float64).tiny), full_matrices=False)
        new = q[:, s > 1e-8 * s.max().clamp(min=1e-300)] if scale.max() > 0 else q[:, :0]
        if new.shape[1]:
            self.basis = torch.cat([self.basis, new], 1)
            self.image = torch.cat([self.image, self.multiply(new).double()], 1)
            self.products += new.shape[1]
        return int(new.shape[1])

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, falling, and their vectors in terms of the basis."""
        t = self.basis.T @ self.image
        k, s = torch.linalg.eigh((t + t.T) / 2)
        return k.flip(0).clamp(min=0), s.flip(1)


def apply_filter(
    multiply: Callable[[Tensor], Tensor], block: Tensor, filter_: Callable[[Tensor], Tensor], *, tolerance: float = 1e-3, limit: int = 2000
) -> tuple[Tensor, Krylov]:
    r"""φ(K)B for a block B (rows, R), and the span that it was found in.

    Stops when the predictions that the fit moves, KφB, change by less than ``tolerance`` of their size from one step to the
    next, rather than when the residual is small: what still changes a residual hardly moves any prediction.

    Args:
        multiply: V ↦ KV for V (rows, R).
        block: B.
        filter_: φ, of eigenvalues in float64.
        tolerance: of the predictions; the error of a TPV is of the order of its square.
        limit: products at most.

    Raises:
        TPVError: if the limit is reached.

    Cost: R products for each step; 5 to 10 steps for a filter that is smooth on the scale of the spectrum.
    """
    block = block.double()
    krylov, before = Krylov.begin(multiply, block), torch.zeros_like(block)
    while True:
        k, s = krylov.ritz()
        weights = s @ (filter_(k).unsqueeze(1) * (s.T @ (krylov.basis.T @ block)))
        moved = krylov.image @ weights
        change = (torch.linalg.matrix_norm(moved - before) / torch.linalg.matrix_norm(moved).clamp(min=1e-300)).item()
        _log.info("%d products with the kernel: predictions changed by %.1e of their size", krylov.products, change)
        if change <= tolerance or not krylov.extend(krylov.image[:, -block.shape[1] :]):
            return krylov.basis @ weights, krylov
        if krylov.products > limit:
            raise TPVError(
                f"the fit has not converged after {krylov.products} products with the kernel: its filter is too sharp for this spectrum; "
                "use a stronger penalty, fewer steps, or fewer examples so that the kernel can be written out."
            )
        before = moved
