"""The weights that a perturbation displaces: names, values and the modules they belong to."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError, did_you_mean, what_it_is
from tpv.common.format import called
from tpv.model.watch import watch_of

Patterns = str | Sequence[str] | Callable[[str, Tensor], bool] | None
"""Glob patterns of parameter names, or a function of (name, parameter)."""


class Weights(Mapping[str, Tensor]):
    """The trained weights w*, as a mapping from parameter names to detached tensors.

    This is what :meth:`tpv.Perturbation.sample` and :meth:`tpv.DiagonalPerturbation.variance` receive.
    It holds the floating-point parameters with ``requires_grad=True`` that the perturbation's
    ``params=`` selects; a parameter shared by several modules appears once, under its first name. The
    ``padding_idx`` row of an ``nn.Embedding`` counts as frozen and is never displaced.

    Example:
        >>> import torch, tpv
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> at = tpv.Weights(model)
        >>> list(at), tuple(at["0.weight"].shape), at.module("0.weight")
        (['0.weight', '0.bias'], (2, 3), Linear(in_features=3, out_features=2, bias=True))
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        self._model, self.watch = model, watch_of(model)
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self._tensors = {n: trainable[n].detach() for n in (trainable if names is None else names)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def module(self, name: str) -> nn.Module:
        """The module that owns the parameter ``name``."""
        return self._model.get_submodule(name.rpartition(".")[0])

    @property
    def fixed(self) -> dict[str, Tensor]:
        """What no perturbation displaces: buffers, such as BatchNorm statistics, and frozen parameters."""
        frozen = {name: p.detach() for name, p in self._model.named_parameters() if not p.requires_grad}
        return frozen | {name: buffer.detach() for name, buffer in self._model.named_buffers()}

    @property
    def names(self) -> list[str]:
        """Every parameter of the model, selected or not."""
        return [name for name, _ in self._model.named_parameters()]

    def padding_rows(self, name: str) -> set[int]:
        """The ``padding_idx`` of the embeddings that hold the parameter ``name``."""
        return self._padding.get(id(self._model.get_parameter(name)), set())

    def without_padding(self, name: str, value: Tensor) -> Tensor:
        """Values (..., *shape) of the parameter ``name``, 0 in its padding rows, which PyTorch never
        trains.
        """
        padding = self.padding_rows(name)
        if not padding:
            return value
        rows = torch.ones(len(self[name]), 1, dtype=value.dtype, device=value.device)
        rows[list(padding)] = 0
        return value * rows

    @functools.cached_property
    def _padding(self) -> dict[int, set[int]]:
        rows_of: dict[int, set[int]] = {}
        for module in self._model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                rows_of.setdefault(id(module.weight), set()).add(module.padding_idx)
        return rows_of

    def select(self, patterns: Patterns) -> Weights:
        """The weights whose names match one of the glob ``patterns`` (``"layer1.*"``, ``"*.weight"``); None
        keeps all.

        Args:
            patterns: one or several, or a function ``(name, weight) -> bool``.

        Raises:
            TPVError: if a pattern matches nothing, or the function selects nothing or gives no bool.
        """
        if patterns is None:
            return self
        if callable(patterns):
            selected_names = [n for n, w in self._tensors.items() if _is_true(patterns(n, w), patterns)]
            if not selected_names:
                raise TPVError(
                    f"params={called(patterns)} selects none of the {len(self)} trainable parameters."
                )
            return Weights(self._model, selected_names)
        if not isinstance(patterns, Iterable):
            raise TPVError(
                f"params={patterns!r}: give a glob pattern such as '*.weight', several, or a function "
                "(name, weight) -> bool."
            )
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        for glob in globs:
            if not fnmatch.filter(self._tensors, glob):
                hint = (
                    did_you_mean(glob, self._tensors)
                    or f" Names look like {next(iter(self._tensors), '(none)')!r}."
                )
                raise TPVError(f"params={glob!r} matches no trainable parameter.{hint}")
        matching = [n for n in self._tensors if any(fnmatch.fnmatchcase(n, g) for g in globs)]
        return Weights(self._model, matching)


def _is_true(answer: Any, function: Callable[..., object]) -> bool:
    several = isinstance(answer, Iterable) and not isinstance(answer, str) and getattr(answer, "ndim", True)
    if several or callable(answer):
        raise TPVError(f"params={called(function)} must give True or False, got {what_it_is(answer)}.")
    return bool(answer)
