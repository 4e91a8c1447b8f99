"""Importances for Torch-Pruning:
``tp.pruner.BasePruner(model, example, importance=TPVGroupImportance(data), ...)``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from tpv.common.errors import TPVError
from tpv.estimation.loop import Seed
from tpv.model.batches import batch_size, batches, ends
from tpv.model.linearization import Forward
from tpv.model.outputs import OutputSpec
from tpv.model.twin import twin_of
from tpv.pruning.channels.candidates import wrongly_traced
from tpv.pruning.channels.conversion import channel_group, scorable
from tpv.pruning.channels.groups import ChannelGroup, Parameters
from tpv.pruning.channels.proof import WRONG, problems
from tpv.pruning.channels.tracing import all_groups, trace
from tpv.pruning.scores.channel_scores import ChannelScores
from tpv.pruning.scores.cotangents import Frozen, freeze
from tpv.pruning.scores.criteria import JBR, JC, Criterion, TPVImportance
from tpv.pruning.scores.greedy import Elimination
from tpv.pruning.scores.scoring import score
from tpv.pruning.scores.taps import Site

__all__ = ["JBRImportance", "JCImportance", "TPVGroupImportance", "channel_groups"]


def channel_groups(model: nn.Module, example: Any, *, forward: Forward | None = None) -> list[ChannelGroup]:
    """What can be removed from a model, by Torch-Pruning's dependency graph; the channels of its outputs
    cannot.

    Args:
        model: in evaluation mode.
        example: a batch of one or two examples.
        forward: as in :func:`tpv.estimate`.

    Raises:
        TPVError: without Torch-Pruning (``pip install 'tpv[pruning]'``), or for a model that it cannot trace.

    Cost: a forward pass.

    Example:
        >>> import torch
        >>> from tpv.integrations.torch_pruning import channel_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
        >>> channel_groups(model, torch.randn(2, 8))
        [ChannelGroup(name='0', width=4, tied=1)]
    """
    with twin_of(model, forward) as (twin, remapped):
        return [channel_group(group) for group in all_groups(trace(twin, example, remapped))]


class _Scores:
    """Scores of a criterion on a model as it is now, in the form that Torch-Pruning's pruners call:
    ``importance(group)``.

    All groups are scored together when the first is asked for after the weights have changed. Equal scores
    are made to differ by 1e-13 of the largest, because Torch-Pruning removes all up to a threshold. The
    first time with a model, its groups are verified: the network without a channel must compute what it does
    with zeros in its place; ``verify = False`` leaves that out.
    """

    verify = True

    def __init__(
        self,
        data: object,
        criterion: Criterion,
        forward: Forward | None,
        generator: Seed,
        chunk_size: int | None,
    ) -> None:
        self.data, self.criterion, self.forward = data, criterion, forward
        self.generator, self.chunk_size = generator, chunk_size
        self._model: nn.Module | None = None
        self._frozen: Frozen | None = None
        self._state: Any = None
        self._values: dict[Site, Tensor] = {}
        self._wrong: list[str] = []

    def __call__(self, group: Any) -> Tensor:
        """Scores (channels,) of a ``tp.dependency.Group``, in squared units of the outputs, on the CPU.

        Raises:
            TPVError: for a group that the criterion cannot score or that is traced wrongly; for NaN.
        """
        model, graph = group._DG.model, group._DG
        if (state := _state(model)) != self._state:
            self._values, self._state = {}, None
            with suppress(TPVError):  # because of a group that may not be asked for: then each by itself
                self._score(model, scorable(all_groups(graph), self.criterion.parameters))
            self._state = state
        root_group = channel_group(group)
        if root_group.name in self._wrong:
            raise TPVError(wrongly_traced(root_group.name, "put its layer in ignored_layers"))
        root = root_group.members[0]
        site, channels = (root.module, root.role), torch.tensor(group[0].idxs)
        if site not in self._values or self._values[site][channels].isnan().any():
            self._score(model, [channel_group(_with_all_channels(graph, group))])
        return self._values[site][channels]

    def _score(self, model: nn.Module, groups: list[ChannelGroup]) -> None:
        if not groups:
            return
        with twin_of(model, self.forward) as (twin, forward):
            twin.eval()
            if model is not self._model:
                self._frozen = freeze(twin, self.data, self.criterion, forward=forward)
                self._model, self._wrong = model, self._wrongly_traced(twin, groups, forward)
            scores = score(
                twin, self.data, groups, self.criterion, frozen=self._frozen,
                forward=forward, generator=self.generator, chunk_size=self.chunk_size,
            )  # fmt: skip
        for group, values in zip(groups, _distinct(scores), strict=True):
            for m in group.members:
                known = self._values.get((m.module, m.role), torch.empty(0, dtype=torch.float64))
                length = max(len(known), int(m.index.max()) + 1)
                longer = torch.full((length,), torch.nan, dtype=torch.float64)
                longer[: len(known)] = known
                longer[m.index] = values[m.channel]
                self._values[m.module, m.role] = longer

    def _wrongly_traced(
        self, model: nn.Module, groups: list[ChannelGroup], forward: Forward | None
    ) -> list[str]:
        if not self.verify:
            return []
        first = next(iter(batches(self.data)))
        example, consumed = ends(first, batch_size(first)), [group for group in groups if group.consumers]
        failed = problems(model, example, consumed, forward)
        return [name for name, problem in failed.items() if problem == WRONG]


class TPVGroupImportance(_Scores):
    """:class:`tpv.pruning.TPVImportance` on unlabelled data.

    Args:
        data: calibration inputs, as in :func:`tpv.estimate`.
        probes, parameters, output, interactions: as in :class:`tpv.pruning.TPVImportance`; with interactions,
            the importance of a channel is the damage of all channels that go before it and its own.
        forward, generator, chunk_size: as in :func:`tpv.estimate`.

    Cost: of :func:`tpv.pruning.score`, once for each state of the model.

    Example:
        >>> import torch, torch_pruning as tp
        >>> from tpv.integrations.torch_pruning import TPVGroupImportance
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
        >>> x = torch.randn(64, 8)
        >>> options = {"pruning_ratio": 0.5, "ignored_layers": [model[2]]}
        >>> tp.pruner.BasePruner(model, x[:1], TPVGroupImportance(x), **options).step()
        >>> model[0]
        Linear(in_features=8, out_features=3, bias=True)
    """

    def __init__(
        self,
        data: object,
        *,
        probes: int = 1,
        parameters: Parameters = "consumers",
        output: OutputSpec = "logits",
        interactions: bool = False,
        forward: Forward | None = None,
        generator: Seed = 0,
        chunk_size: int | None = None,
    ) -> None:
        criterion = TPVImportance(probes, parameters, output, interactions)
        super().__init__(data, criterion, forward, generator, chunk_size)


class JBRImportance(_Scores):
    """:class:`tpv.pruning.JBR` on unlabelled data; its pseudo-labels are those of each model when it is first
    scored.

    Args:
        data: as in :class:`TPVGroupImportance`; it must come in the same order at every reading.
        confidence, parameters, interactions: as in :class:`tpv.pruning.JBR`.
        forward, chunk_size: as in :class:`TPVGroupImportance`.
    """

    def __init__(
        self,
        data: object,
        *,
        confidence: float = 0.0,
        parameters: Parameters = "all",
        interactions: bool = False,
        forward: Forward | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(data, JBR(confidence, parameters, interactions), forward, 0, chunk_size)


class JCImportance(_Scores):
    """:class:`tpv.pruning.JC` on labelled data.

    Args:
        data: batches (inputs, labels), or mappings with labels.
        parameters, interactions, forward, chunk_size: as in :class:`JBRImportance`.
    """

    def __init__(
        self,
        data: object,
        *,
        parameters: Parameters = "all",
        interactions: bool = False,
        forward: Forward | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(data, JC(parameters, interactions), forward, 0, chunk_size)


def _state(model: nn.Module) -> Any:
    """What changes with any weight or buffer, also when it is written to through ``.data``."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(t), t.data_ptr(), t._version, t.shape, t.detach().double().sum().item()) for t in tensors]


def _with_all_channels(graph: Any, group: Any) -> Any:
    """The group with all channels of its root."""
    root = group[0].dep
    writes = graph.is_out_channel_pruning_fn(root.handler)
    width = (graph.get_out_channels if writes else graph.get_in_channels)(root.target.module)
    return graph.get_pruning_group(root.target.module, root.handler, list(range(width)))


def _distinct(scores: ChannelScores) -> list[Tensor]:
    """The scores of each group, or the damage up to each channel, all different: by at least 1e-13 of the
    largest between them.
    """
    values = torch.cat([group.value for group in scores.values()])
    ranked, order = values.sort(stable=True)
    if scores.terms is not None:
        order, ranked = Elimination(values, scores.terms).order()
    steps = torch.arange(len(values)) * (ranked.abs().max() * 1e-13).clamp(min=1e-300)
    values[order] = (ranked - steps).cummax(0).values + steps
    return list(values.split([len(group.value) for group in scores.values()]))
