"""What the removal of single weights does, and the masks that follow."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tpv._errors import TPVError
from tpv._format import plus_minus, table
from tpv._options import require_int
from tpv._stats import Estimate
from tpv.pruning.places import place

_SHOWN = 10


@dataclass(frozen=True, eq=False, repr=False)
class WeightScores:
    """What :func:`tpv.pruning.weight_scores` returns.

    Masks are boolean, True where a weight stays: what :class:`tpv.Masking` and
    :func:`torch.nn.utils.prune.custom_from_mask` take.

    Attributes:
        scores: parameter name → scores of its shape, in squared units of the outputs; infinite in the
            ``padding_idx`` rows of embeddings, which PyTorch never trains and no mask removes.
        layers: module name → the sum of its scores with its standard error over examples: how sensitive the
            layer is.
        reliability: rank correlation over weights of the scores with those from as many other examples, by
            halves (even and odd examples) and the Spearman-Brown formula; nan where it cannot be told.
        layer_reliability: the same within each layer.
        n_examples: number of examples.
        metadata: estimator, seed, outputs, device, seconds, versions, as in :class:`tpv.TPVResult`.

    Example:
        >>> import torch, tpv
        >>> from tpv.pruning import TPVImportance, weight_scores
        >>> model = torch.nn.Linear(4, 2, bias=False).double()
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).double()
        >>> found = weight_scores(model, x, TPVImportance(2))
        >>> {name: int(mask.sum()) for name, mask in found.masks(0.25).items()}
        {'weight': 6}
        >>> found.n_m_masks(2, 4)["weight"].sum(1).tolist()
        [2, 2]
    """

    scores: Mapping[str, Tensor]
    layers: Mapping[str, Estimate]
    reliability: float
    layer_reliability: Mapping[str, float]
    n_examples: int
    metadata: dict[str, Any] = field(default_factory=dict)

    def importance_scores(self, model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
        """(module, attribute) → scores, what ``global_unstructured`` takes.

        ``torch.nn.utils.prune.global_unstructured(list(found), pruning_method=prune.L1Unstructured, importance_scores=found, amount=0.5)``
        removes the same weights as :meth:`masks`, but for ties and for layers that fall whole.

        Args:
            model: the model that was scored, or one of the same modules.

        Raises:
            TPVError: for a parameter that the model does not have, or that several modules share, which
                ``torch.nn.utils.prune`` would prune in one of them only (:func:`apply_masks` takes all).
        """
        found = {}
        for name, scores in self.scores.items():
            owners = place(model, name, scores.shape)
            if len(owners) > 1:
                raise TPVError(
                    f"{name} is shared by {len(owners)} modules, and torch.nn.utils.prune would prune it in "
                    "one of them: "
                    "use apply_masks(model, scores.masks(...)), or leave it out with params=."
                )
            found[owners[0]] = scores
        return found

    def masks(self, amount: float | int, *, per_layer: bool = False) -> dict[str, Tensor]:
        """Remove the weights with the smallest scores; of equal ones, those that come first.

        The best weight of every parameter stays, so that none is emptied; others go in its place.

        Args:
            amount: a fraction in [0, 1) of the scored weights, rounded, or an int, how many of them: exactly
                as many go.
            per_layer: the amount of each parameter instead of all together.

        Returns:
            Parameter name → mask (bool) of its shape.

        Raises:
            TPVError: for an amount that is neither, or that would empty a parameter.
        """
        if not per_layer:
            return self._masks(list(self.scores), amount)
        return {name: mask for single in self.scores for name, mask in self._masks([single], amount).items()}

    def _masks(self, names: list[str], amount: float | int) -> dict[str, Tensor]:
        sizes = [self.scores[name].numel() for name in names]
        device = self.scores[names[0]].device
        parts = [self.scores[name].flatten().to(device, copy=True) for name in names]
        count = sum(int(part.isfinite().sum()) for part in parts)
        for part in parts:
            if (finite := part.isfinite().nonzero()).numel():
                best = len(finite) - 1 - int(part[finite].flatten().flip(0).argmax())
                part[finite[best]] = torch.inf
        flat = torch.cat(parts)
        going = _how_many(amount, count, int(flat.isfinite().sum()))
        keep = torch.ones(len(flat), dtype=torch.bool, device=device)
        keep[flat.argsort(stable=True)[:going]] = False
        split = zip(names, keep.split(sizes), strict=True)
        return {
            name: mask.reshape(self.scores[name].shape).to(self.scores[name].device) for name, mask in split
        }

    def n_m_masks(self, n: int = 2, m: int = 4, *, dim: int = 1) -> dict[str, Tensor]:
        """Keep the n weights with the largest scores of each m consecutive ones; of equal ones, those that
        come first.

        Groups run along ``dim``, the inputs of a linear layer (out, in) and, for each kernel position by
        itself, the input channels of a convolution (out, in, kh, kw), as NVIDIA's sparse tensor cores and its
        ASP library want them.

        Args:
            n, m: how many of how many.
            dim: 1; 0 for weights that are (in, out), such as GPT-2's.

        Returns:
            Parameter name → mask (bool) of its shape, without the parameters whose axis ``dim`` is missing or
            no multiple of m and embeddings with a ``padding_idx``; a warning names them.

        Raises:
            TPVError: unless 1 ≤ n < m and dim ≥ 0, or if no parameter is left.
        """
        require_int("n_m_masks", "m", m, 2)
        require_int("n_m_masks", "n", n, 1, m - 1)
        require_int("n_m_masks", "dim", dim, 0)
        fitting = {
            k: s
            for k, s in self.scores.items()
            if s.ndim > dim and s.shape[dim] % m == 0 and bool(s.isfinite().all())
        }
        if not fitting:
            raise TPVError(
                f"n_m_masks: no parameter has an axis {dim} whose size is a multiple of {m}: choose another "
                "m or dim."
            )
        if left := [name for name in self.scores if name not in fitting]:
            warnings.warn(
                f"n_m_masks leaves out {', '.join(left)}: axis {dim} is no multiple of {m}, or has frozen "
                "rows.",
                stacklevel=2,
            )
        return {name: _best_of_each(scores, n, m, dim) for name, scores in fitting.items()}

    def __str__(self) -> str:
        meta = self.metadata
        ranked = sorted(self.layers.items(), key=lambda item: -item[1].value)
        rows = [(name, plus_minus(e.value, e.stderr)) for name, e in ranked[:_SHOWN]]
        rows += [(f"{len(ranked) - _SHOWN} more", "")] if len(ranked) > _SHOWN else []
        return "\n".join(
            [
                f"Scores of {sum(s.numel() for s in self.scores.values())} weights; reliability "
                f"{self.reliability:.3f}",
                f"{self.n_examples} examples, {meta.get('estimator', '')}, seed {meta.get('seed', '')}",
                "",
                table(("layer", "sum of scores"), rows),
            ]
        )

    __repr__ = __str__


def _how_many(amount: float | int, count: int, removable: int) -> int:
    whole = isinstance(amount, int) and not isinstance(amount, bool)
    if not (amount >= 0 if whole else isinstance(amount, float) and 0 <= amount < 1):
        raise TPVError(
            f"masks(amount={amount!r}): amount must be a fraction in [0, 1) or an int, the number of weights "
            "to remove."
        )
    going = int(amount) if whole else round(amount * count)
    if going > removable:
        raise TPVError(
            f"masks(amount={amount!r}) would remove {going} of {count} weights, and at most {removable} can "
            "go, because every parameter "
            "keeps its best: remove fewer."
        )
    return going


def _best_of_each(scores: Tensor, n: int, m: int, dim: int) -> Tensor:
    groups = scores.movedim(dim, -1).unflatten(-1, (-1, m))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    keep = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device).scatter_(-1, best, True)
    return keep.flatten(-2).movedim(-1, dim).contiguous()
