"""Channel scores against the dense Jacobian times the weights of each channel, example by example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import InPlace, randn, settled
from torch import Tensor, nn

from tpv.integrations.torch_pruning import channel_groups
from tpv.linearization import Linearization
from tpv.outputs import as_output, class_axis
from tpv.pruning import JBR, ChannelGroup, Member, TPVImportance, score
from tpv.pruning.criteria import Criterion
from tpv.testing import assert_unchanged, dense_jacobian

# ---------------------------------------------------------------------------------------------------------------------
# The formula, densely
# ---------------------------------------------------------------------------------------------------------------------


def weights_of(model: nn.Module, member: Member, channel: int) -> dict[str, Tensor]:
    """The weights of one member that go with a channel, as a parameter vector with zeros elsewhere."""
    module, chosen = model.get_submodule(member.module), member.index[member.channel == channel]
    found = {}
    for name, p in module.named_parameters(recurse=False):
        mask = torch.zeros_like(p)
        for i in chosen.tolist():
            mask[_slice(module, name, member.role, i)] = 1
        found[f"{member.module}.{name}"] = mask * p.detach()
    return found


def _slice(module: nn.Module, name: str, role: str, i: int) -> Any:
    """Where channel i is in a parameter of a layer."""
    conv = isinstance(module, nn.modules.conv._ConvNd)
    if isinstance(module, nn.Embedding):
        return (slice(None), i)
    if role == "producer":
        if conv and module.transposed and name == "weight":
            group, within = divmod(i, module.out_channels // module.groups)
            per = module.in_channels // module.groups
            return (slice(group * per, (group + 1) * per), within)
        return i
    if name == "bias":
        return slice(0, 0)
    if not conv:
        return (slice(None), i)
    if module.transposed:
        return i
    group, within = divmod(i, module.in_channels // module.groups)
    per = module.out_channels // module.groups
    return (slice(group * per, (group + 1) * per), within)


def dense(
    model: nn.Module, batch: Any, groups: list[ChannelGroup], criterion: Criterion, labels: Tensor | None = None, forward: Any = None
) -> Tensor:
    """(N, channels) scores of each example by the definition: (vᵀ J_g w_g)² or ‖J_g w_g‖²."""
    jacobian = {name: j.flatten(2) for name, j in dense_jacobian(model, batch, forward, criterion.output).items()}
    f = Linearization(model, forward, as_output(criterion.output)).displaced(batch, {})
    m = None
    if not isinstance(criterion, TPVImportance):
        axis = class_axis(f)
        labels = f.argmax(axis) if labels is None else labels
        kept = (labels != -100).unsqueeze(axis)
        m = ((f.softmax(axis) - F.one_hot(labels.clamp(min=0), f.shape[axis]).movedim(-1, axis)) * kept).flatten(1)
    columns = []
    for group in groups:
        for channel in range(group.width):
            moved = [
                sum(jacobian[name] @ w.flatten() for name, w in weights_of(model, member, channel).items())
                + torch.zeros(len(f), f[0].numel())
                for member in group.chosen(criterion.members)
            ]
            parts = [sum(moved)] if criterion.squares == "joint" else moved
            columns.append(sum((part if m is None else (part * m).sum(1, keepdim=True)).square().sum(1) for part in parts))
    return torch.stack(columns, 1)


def flat(scores: Any) -> Tensor:
    return torch.cat([group.value for group in scores.values()])


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert expected.max() > 1e-12
    assert (found - expected).abs().max() <= tolerance * expected.max()


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A channel that several layers read: a fork, an addition, a concatenation, and a flattening."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), norm(4)
        self.conv1, self.inner, self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4), nn.Conv2d(4, 4, 3, padding=1)
        self.side, self.mix = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 3, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        out = self.conv2(F.relu(self.inner(self.conv1(x)), inplace=True))
        out += x
        x = F.relu_(out)
        return self.head(F.relu(self.mix(torch.cat([x, self.side(x)], 1))).flatten(1))


class Block(nn.Module):
    """Tokens: embeddings, LayerNorm, two linear layers behind one another, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 4, padding_idx=0), nn.LayerNorm(4)
        self.up, self.twice, self.down, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.up(self.norm(x))))))))
        return self.head(x)


class Gated(nn.Module):
    """Halves of one output that meet: a channel goes with its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Conv2d(2, 6, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, 1)
        return self.head(a * torch.sigmoid(b)).mean((2, 3))


class AddedInPlace(nn.Module):
    """An input that is written over after it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x)).clone()
        read = self.conv(x)
        x += read
        return self.head(torch.tanh(x)).mean((2, 3))


class ChannelsLast(nn.Module):
    """BatchNorm read as tokens: differentiated wrongly on a CPU for one example alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.mid, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.norm(self.stem(x)).flatten(2).transpose(1, 2)))).mean(1)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Net:
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    tied: int = 1
    overlapping: bool = False
    """Whether some weights both read and write a channel, and count twice among all members."""

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return settled(self.build())


def image(channels: int = 2, size: int = 5) -> Tensor:
    return randn(5, channels, size, size)


NETS = [
    Net("mlp", lambda: chain(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), lambda: randn(5, 4)),
    Net("residual", Residual, lambda: image(2, 4)),
    Net("in place", InPlace, lambda: image(3)),
    Net("added in place", AddedInPlace, lambda: image(), overlapping=True),
    Net("tokens", Block, lambda: torch.tensor([[1, 2, 0], [3, 3, 6], [5, 1, 4]]), overlapping=True),
    Net("sequence", lambda: chain(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: randn(5, 7, 4)),
    Net("group norm", lambda: chain(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Conv2d(6, 3, 3), nn.Flatten()), lambda: image(), 2),
    Net("instance norm", lambda: Residual(lambda c: nn.InstanceNorm2d(c, affine=True)), lambda: image(2, 4)),
    Net("norm without weights", lambda: Residual(lambda c: nn.BatchNorm2d(c, affine=False)), lambda: image(2, 4)),
    Net("batchnorm1d", lambda: chain(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 3)), lambda: randn(5, 4)),
    Net("prelu", lambda: chain(nn.Conv2d(2, 4, 3), nn.PReLU(4), nn.Conv2d(4, 3, 3), nn.PReLU(), nn.Flatten(), nn.Linear(3, 3)), lambda: image()),
    Net("depthwise", lambda: chain(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.Tanh(), nn.Conv2d(6, 3, 3), nn.Flatten()), lambda: image()),
    Net("grouped", lambda: chain(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 1, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()), lambda: image(), 2),
    Net("transposed", lambda: chain(nn.ConvTranspose2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, bias=False), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.AvgPool2d(3), nn.Flatten()), lambda: image(size=3)),
    Net("convolution over folded rows", lambda: chain(nn.Flatten(0, 1), nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Unflatten(0, (-1, 4)), nn.Flatten()), lambda: randn(3, 4, 2, 5)),
    Net("gated", Gated, lambda: image(), 2),
    Net("channels last", ChannelsLast, lambda: image()),
]  # fmt: skip
BY_NAME = {net.name: net for net in NETS}


def prepared(name: str) -> tuple[nn.Module, Tensor, list[ChannelGroup]]:
    model, x = BY_NAME[name].model(), BY_NAME[name].batch()
    return model, x, channel_groups(model, x[:2])


CRITERIA = [
    TPVImportance(probes=99),
    TPVImportance(probes=99, members="all", squares="layers"),
    JBR(members="consumers"),
    JBR(),
    JBR(squares="layers"),
    JBR(members="producers"),
]


@pytest.mark.parametrize("net", NETS, ids=[net.name for net in NETS])
def test_scores_are_the_formula(net: Net) -> None:
    model, x = net.model(), net.batch()
    groups = channel_groups(model, x[:2])
    assert groups
    assert max(group.tied for group in groups) == net.tied
    for criterion in CRITERIA:
        if net.overlapping and criterion.members == "all" and criterion.squares == "joint":
            continue
        expected = dense(model, x, groups, criterion)
        for chunk in (1, 2, len(x)):
            with assert_unchanged(model):
                found = score(model, x, groups, criterion, chunk_size=chunk)
            assert_equal(flat(found), expected.mean(0))
    stderr = torch.cat([group.stderr for group in found.values()])
    assert_equal(stderr, expected.std(0) / len(x) ** 0.5)


def test_a_transposed_layer_and_a_linear_layer_behind_a_flattening_have_their_readers() -> None:
    groups = {g.name: g for g in prepared("residual")[2]}
    readers = {name: {m.module for m in g.members if m.role == "consumer"} for name, g in groups.items()}
    assert readers == {"stem": {"conv1", "side", "mix"}, "conv1": {"conv2"}, "side": {"mix"}, "mix": {"head"}} or "conv2" in readers
    assert [len(m.index) for m in groups["mix"].members if m.module == "head"] == [12]
