"""The neural tangent kernel of a set of inputs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.common.fingerprint import weights_digest
from tpv.common.options import require_bool, require_int
from tpv.jacobian import Sweep
from tpv.model.batches import batches
from tpv.model.checks import check_model
from tpv.model.linearization import Forward, Linearization
from tpv.model.memory import available_bytes
from tpv.model.outputs import Output, OutputSpec, as_output
from tpv.model.process_state import process_state
from tpv.model.twin import twin_of
from tpv.model.weights import Patterns
from tpv.ntk.jacobian import GRAM_BYTES, JacobianRows, gram, widest
from tpv.ntk.products import Tangents, pull, push
from tpv.ntk.training_set import TrainingSet
from tpv.perturbations.bound import selected

DENSE_BYTES = 2**31
_log = logging.getLogger("tpv")


def dense_bytes(rows: int, itemsize: int, parameters: int) -> int:
    """Memory that writing out a kernel of so many rows, in a dtype of ``itemsize`` bytes, and its
    eigendecomposition take.
    """
    return rows**2 * (itemsize + 4 * 8) + scratch_bytes(2 * rows, itemsize, parameters)


def scratch_bytes(rows: int, itemsize: int, parameters: int) -> int:
    """Memory for the columns of J that are written out at a time."""
    return min(2 * GRAM_BYTES, rows * parameters * itemsize)


class NTK:
    r"""The empirical neural tangent kernel :math:`\mathcal K = JJ^\top` of n inputs, as a symmetric operator
    on n·K numbers.

    J is the Jacobian of the outputs z by the trained weights, one row for every output of every example,
    examples first (row i·K + k); z = Πf, Π = I − 11ᵀ/K, if outputs are centered, which softmax does not see.
    Small kernels are written out; of larger ones only products are taken, each a backward pass and a
    Jacobian-vector product over the data.

    Args:
        model: a trained ``nn.Module`` in evaluation mode. (The library gives a ``Linearization``.)
        data: a tensor of inputs, or a re-iterable of batches that always come in the same order.
        center: whether to subtract the mean over the outputs; a single output is never centered.
        params: glob patterns of the parameters, or a function ``(name, weight) -> bool``; None takes all.
        output: ``"logits"``, or a function of what the model returns that gives a tensor (N, ...).
        forward: ``(model, batch) -> outputs`` for batches of another form.
        dense: write the kernel out, or do not; by default where that takes less than 2 GiB.
        chunk_size: examples at a time; by default as in :func:`tpv.estimate`.

    Raises:
        TPVError: for a model or data that :func:`tpv.estimate` would refuse.

    Cost: nothing but a forward pass until it is used. Written out: about 10 forward+backward passes for K =
        10 and 2 (nK)² P operations; a product: 1.7 forward+backward passes for each vector.

    Source: Jacot, Gabriel, Hongler, "Neural Tangent Kernel", arXiv 1806.07572.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> ntk = tpv.NTK(model, torch.eye(3).double(), center=False)
        >>> ntk.shape, torch.allclose(ntk.matrix, torch.eye(6).double())
        ((6, 6), True)
        >>> ntk
        NTK(3 examples, 6 outputs, 6 parameters, float64, dense)
    """

    def __init__(
        self,
        model: nn.Module | Linearization,
        data: object,
        *,
        center: bool = True,
        params: Patterns = None,
        output: OutputSpec = "logits",
        forward: Forward | None = None,
        dense: bool | None = None,
        chunk_size: int | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "center": center, "params": params, "output": output, "forward": forward, "dense": dense,
            "chunk_size": chunk_size,
        }  # fmt: skip
        self._arguments = (model, data), options
        require_bool("NTK", "center", center)
        if chunk_size is not None:
            chunk_size = require_int("NTK", "chunk_size", chunk_size, 1)
        with _linearized(model, forward, output) as lin:
            self.fingerprint = weights_digest(lin.model)
            self.names = list(selected(lin, params))
            self.train = TrainingSet(lin, data, center=center, chunk_size=chunk_size)
        self.lin = self.train.lin
        self.dtype, self.device = widest(lin.weights, self.names), lin.weights[self.names[0]].device
        self.dense = self.dense_bytes <= DENSE_BYTES if dense is None else dense
        self._matrix: Tensor | None = None
        self._spectrum: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its arguments: the same bytes before and after the kernel has been written out."""
        arguments, options = self._arguments
        return functools.partial(NTK, **options), arguments

    def check_belongs(self, lin: Linearization, names: list[str]) -> None:
        """Refuse a model or parameters that this kernel is not of.

        Raises:
            TPVError: if weights, buffers or settings of the model are not those that the kernel was made
                with, if its outputs on the first training batch are not, or if other parameters are asked
                for.

        Cost: a forward pass over the first batch.
        """
        if names != self.names:
            raise TPVError(
                f"the kernel is of {len(self.names)} parameters and {len(names)} are selected: give "
                "tpv.NTK and the perturbation the same params=."
            )
        if weights_digest(lin.model) != self.fingerprint:
            raise TPVError(
                "the kernel is of another model, or this model's weights, buffers or settings have changed "
                "since it was made: make it again by tpv.NTK(model, training_data)."
            )
        here = lin.reading(self.lin.output.coordinates)
        batch, places = next(iter(self.train.chunks()))
        try:
            with torch.no_grad():
                z = here(batch)
            self.train.check_order(z, places)
        except (TPVError, RuntimeError):
            raise TPVError(
                "the kernel is of other outputs than this call's: give tpv.NTK and the call the same "
                "forward= and output function."
            ) from None

    @property
    def shape(self) -> tuple[int, int]:
        """(nK, nK)."""
        return self.train.rows, self.train.rows

    @property
    def dense_bytes(self) -> int:
        """Memory that writing the kernel out and its eigendecomposition take."""
        return dense_bytes(self.train.rows, self.dtype.itemsize, self._parameters)

    @property
    def _parameters(self) -> int:
        return sum(self.lin.weights[name].numel() for name in self.names)

    def _scratch(self, rows: int) -> int:
        """Memory for columns of J, of ``rows`` examples and of these."""
        return scratch_bytes(rows + self.train.rows, self.dtype.itemsize, self._parameters)

    def __repr__(self) -> str:
        kind = "dense" if self.dense else "matrix-free"
        return (
            f"NTK({self.train.examples} examples, {self.train.rows} outputs, {self._parameters:,} "
            "parameters, "
            f"{str(self.dtype).removeprefix('torch.')}, {kind})"
        )

    @functools.cached_property
    def rows(self) -> JacobianRows:
        """The rows of J."""
        chunks = functools.partial(self.train.chunks, self.chunk_size)
        return JacobianRows(self.sweep(self.lin), chunks, self.train.rows, self.train.check_order)

    @property
    def chunk_size(self) -> int:
        """Examples at a time, so that their gradients by the largest parameter fit in 256 MiB too."""
        largest = max(self.lin.weights[name].nbytes for name in self.names)
        return min(self.train.chunk_size, max(1, GRAM_BYTES // largest))

    def sweep(self, lin: Linearization) -> Sweep:
        """Gradients by the kernel's parameters, of outputs in the output space of ``lin``."""
        selected_weights = {
            name: lin.weights.without_padding(name, torch.ones((), device=self.device)) for name in self.names
        }
        return Sweep(lin, selected_weights, passes=self.train.rows // self.train.examples)

    @property
    def matrix(self) -> Tensor:
        """The kernel written out, (nK, nK), in the dtype of the weights.

        Raises:
            TPVError: if that needs more memory than there is.
        """
        if self._matrix is None:
            self._refuse_too_large(self.dense_bytes)
            _log.info("writing out %r: %.2f GiB", self, self.dense_bytes / 2**30)
            rows = self.rows
            with process_state():
                product = gram(rows, rows, self.names)
            self._matrix = (product + product.T).div_(2)
        return self._matrix

    def _refuse_too_large(self, needed: int) -> None:
        if needed > (free := available_bytes(self.device)):
            raise TPVError(
                f"the kernel of {self.train.examples} examples × {self.train.rows // self.train.examples} "
                "outputs takes "
                f"{needed / 2**30:.1f} GiB written out, and {free / 2**30:.1f} GiB are free: give fewer "
                "examples, or go without it by "
                "dense=False, in tpv.estimate by estimator=tpv.HutchPlusPlus()."
            )

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, falling and at least 0, in float64, and eigenvectors (nK, nK) in columns, in the
        kernel's dtype; computed once.
        """
        if self._spectrum is None:
            k, u = torch.linalg.eigh(self.matrix.double())
            self._spectrum = k.flip(0).clamp_(min=0), u.to(self.dtype).flip(1)
        return self._spectrum

    def __matmul__(self, v: Tensor) -> Tensor:
        """The kernel times (nK,) or (nK, R)."""
        if v.ndim == 1:
            return (self @ v.unsqueeze(1)).squeeze(1)
        v = self._vectors(v)
        return self.matrix @ v if self.dense else self.push(self.pull(v))

    def _vectors(self, v: Tensor) -> Tensor:
        if v.ndim != 2 or v.shape[0] != self.train.rows:
            raise TPVError(
                f"this kernel has {self.train.rows} rows, and the vectors have the shape {tuple(v.shape)}: "
                "give (rows, R)."
            )
        return v.to(self.device, self.dtype)

    def pull(self, v: Tensor) -> dict[str, Tensor]:
        """Jᵀv for v (nK, R): parameter name → (R, *shape). Cost: one forward and R backward passes."""
        with process_state():
            return pull(self.train, self.names, self._vectors(v))

    def push(self, tangents: Tangents, data: object = None) -> Tensor:
        """Jδ for R displacements, (nK, R); at other inputs if ``data`` is given. Cost: R Jacobian-vector
        products.
        """
        with process_state():
            return push(self.lin, tangents, self._parts(data))

    def _parts(self, data: object) -> Iterator[Any]:
        if data is None:
            return (batch for batch, _ in self.train.chunks())
        return (part for batch in batches(data) for part in self.train.parts(batch))

    def cross(self, data: object) -> Tensor:
        """The kernel between other inputs and these, (mK, nK), written out."""
        with process_state():
            other = TrainingSet(self.lin, data, center=self.train.center, chunk_size=self.train.chunk_size)
            self._refuse_too_large(
                other.rows * self.train.rows * self.dtype.itemsize + self._scratch(other.rows)
            )
            return gram(
                JacobianRows(self.rows.sweep, functools.partial(other.chunks, self.chunk_size), other.rows),
                self.rows,
                self.names,
            )


@contextmanager
def _linearized(
    model: nn.Module | Linearization, forward: Forward | None, output: OutputSpec
) -> Iterator[Linearization]:
    if isinstance(model, Linearization):
        yield model
        return
    check_model(model)
    with twin_of(model, forward) as (twin, remapped):
        yield Linearization(twin, remapped, _linear(output))


def _linear(output: OutputSpec) -> Output:
    """The output, unless it is a curved function of the logits, which the kernel would not see."""
    if output in ("kl", "probabilities", "centered"):
        raise TPVError(
            f"NTK(output={output!r}): give 'logits' with center=True or False, or a function of what the "
            "model returns."
        )
    return as_output(output)
