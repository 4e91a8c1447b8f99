"""φ(K) times a block of vectors, from products with K only."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from tpv.common.errors import TPVError

_log = logging.getLogger("tpv")
_TINY, _WIDTH = 1e-300, 16


class Krylov:
    r"""Orthonormal V whose span contains blocks B with their KB, K²B, …, and the products KV.

    Galerkin's approximation in it is :math:`\varphi(K)B \approx V \varphi(V^\top K V) V^\top B`, exact if the
    span is invariant. All blocks share one span, so that each profits from the directions of the others: the
    large eigenvectors converge together and deflate whatever comes later.

    Args:
        multiply: V ↦ KV for V (rows, R).
        rows: of K.
        device: where vectors are.

    Attributes:
        basis, image: V and KV, (rows, q), float64; K has been applied to q vectors.
    """

    def __init__(self, multiply: Callable[[Tensor], Tensor], rows: int, device: torch.device) -> None:
        self._multiply = multiply
        self.basis = torch.zeros(rows, 0, dtype=torch.float64, device=device)
        self.image = self.basis

    def extend(self, block: Tensor) -> Tensor:
        """Add to the span what is new in a block; the products of K with it."""
        scale = torch.linalg.vector_norm(block, dim=0)
        block = block / scale.clamp(min=_TINY)
        for _ in range(2):  # two passes make it orthogonal to rounding
            block = block - self.basis @ (self.basis.T @ block)
        q, s, _ = torch.linalg.svd(block, full_matrices=False)
        new = q[:, s > 1e-8]
        image = self._multiply(new).double() if new.shape[1] else new
        self.basis, self.image = torch.cat([self.basis, new], 1), torch.cat([self.image, image], 1)
        return image

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, falling, and their vectors in terms of the basis."""
        t = self.basis.T @ self.image
        k, s = torch.linalg.eigh((t + t.T) / 2)
        return k.flip(0).clamp(min=0), s.flip(1)

    def largest(self, rank: int, block: Tensor) -> tuple[Tensor, Tensor]:
        """About the ``rank`` largest eigenvalues and their eigenvectors (rows, rank), by powers of a random
        block.

        Cost: 2 · rank products.
        """
        while block.shape[1] and self.basis.shape[1] < min(2 * rank, len(block)):
            block = self.extend(block)
            _log.info(
                "eigenvectors: %d of %d products with the kernel",
                self.basis.shape[1],
                min(2 * rank, len(block)),
            )
        k, s = self.ritz()
        return k[:rank], self.basis @ s[:, :rank]

    def apply(
        self,
        filter_: Callable[[Tensor], Tensor],
        block: Tensor,
        *,
        tolerance: float = 1e-3,
        limit: int = 2000,
    ) -> Tensor:
        r"""φ(K)B for a block B (rows, R).

        Stops when the output changes of the fit, KφB, change by less than ``tolerance`` of their size
        from one step to the next, rather than when the residual is small: what still changes a residual
        hardly changes any prediction.

        Args:
            filter_: φ, of eigenvalues in float64.
            block: B.
            tolerance: of the predictions; the error of a TPV is of the order of its square.
            limit: products at most.

        Raises:
            TPVError: if the limit is reached.

        Cost: R products for each step; 5 to 10 steps for a filter that is smooth on the scale of the
            spectrum.
        """
        block = block.double()
        before = torch.zeros_like(block)
        following, spent = block, 0
        while True:
            new = self.extend(following).shape[1]
            spent += new
            k, s = self.ritz()
            weights = s @ (filter_(k).unsqueeze(1) * (s.T @ (self.basis.T @ block)))
            output_change = self.image @ weights
            change = (
                torch.linalg.matrix_norm(output_change - before)
                / torch.linalg.matrix_norm(output_change).clamp(min=_TINY)
            ).item()
            _log.info("%d products with the kernel: predictions changed by %.1e of their size", spent, change)
            if change <= tolerance or not new:
                return self.basis @ weights
            if spent >= limit:
                raise TPVError(
                    f"the fit has not converged after {spent} products with the kernel, its filter is too "
                    "sharp for this spectrum: "
                    "use a stronger penalty, fewer steps, or fewer examples so that the kernel can be "
                    "written out."
                )
            before, following = output_change, self._outside(output_change)

    def _outside(self, block: Tensor) -> Tensor:
        """The main directions, at most 16, of what vectors have outside the span."""
        gap = block - self.basis @ (self.basis.T @ block)
        q, s, _ = torch.linalg.svd(gap, full_matrices=False)
        main: Tensor = q[:, s > 0.01 * s[0]]
        return main[:, :_WIDTH]
