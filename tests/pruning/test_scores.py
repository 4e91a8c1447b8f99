"""Channel scores against the dense Jacobian times the weights of each channel, example by example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import InPlace, faults_survived, randn, seeded, settled
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tpv import TPVError
from tpv.integrations.torch_pruning import channel_groups
from tpv.model.linearization import Linearization
from tpv.model.outputs import as_output, class_axis
from tpv.pruning import JBR, JC, ChannelGroup, Frozen, Member, TPVImportance, freeze, score
from tpv.pruning.scores.channel_scores import ScoreSums
from tpv.pruning.scores.criteria import Criterion
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
    model: nn.Module,
    batch: Any,
    groups: list[ChannelGroup],
    criterion: Criterion,
    labels: Tensor | None = None,
    forward: Any = None,
) -> Tensor:
    """(N, channels) scores of each example by the definition: (vᵀ J_g w_g)² or ‖J_g w_g‖²."""
    jacobian = {
        name: j.flatten(2) for name, j in dense_jacobian(model, batch, forward, criterion.output).items()
    }
    f = Linearization(model, forward, as_output(criterion.output)).displaced(batch, {})
    m = None
    if not isinstance(criterion, TPVImportance):
        axis = class_axis(f)
        labels = f.argmax(axis) if labels is None else labels
        kept = (labels != -100).unsqueeze(axis)
        m = (
            (f.softmax(axis) - F.one_hot(labels.clamp(min=0), f.shape[axis]).movedim(-1, axis)) * kept
        ).flatten(1)
    columns = []
    for group in groups:
        for channel in range(group.width):
            change = torch.zeros(len(f), f[0].numel())
            for member in group.scored_members(criterion.parameters):
                for name, w in weights_of(model, member, channel).items():
                    change = change + jacobian[name] @ w.flatten()
            columns.append((change if m is None else (change * m).sum(1, keepdim=True)).square().sum(1))
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
        self.conv1, self.inner, self.conv2 = (
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.side, self.mix = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 3, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        out = self.conv2(F.relu(self.inner(self.conv1(x)), inplace=True))
        out += x
        x = F.relu_(out)
        return self.head(torch.tanh(self.mix(torch.cat([x, self.side(x)], 1))).flatten(1))


class Block(nn.Module):
    """Tokens: embeddings, LayerNorm, two linear layers behind one another, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 4, padding_idx=0), nn.LayerNorm(4)
        self.up, self.twice, self.down, self.head = (
            nn.Linear(4, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 4),
            nn.Linear(4, 3),
        )

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


class Overwritten(nn.Module):
    """An input that is written over after it was read."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem, self.conv, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).square()
        x = x.add_(self.conv(x)) if self.in_place else x.add(self.conv(x))
        return self.head(torch.tanh(x)).mean((2, 3))


class ChannelsLast(nn.Module):
    """BatchNorm read as tokens: differentiated wrongly on a CPU for one example alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.first = nn.LayerNorm(6)
        self.mid, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            torch.tanh(self.mid(self.first(self.norm(self.stem(x)).flatten(2).transpose(1, 2))))
        ).mean(1)


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
    Net("single residual", lambda: Overwritten(False), lambda: image(), overlapping=True),
    Net("tokens", Block, lambda: torch.tensor([[1, 2, 0], [3, 3, 6], [5, 1, 4]]), overlapping=True),
    Net("sequence", lambda: chain(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: randn(5, 7, 4)),
    Net("group norm", lambda: chain(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Conv2d(6, 3, 3), nn.Flatten()), lambda: image(), 2),
    Net("instance norm", lambda: chain(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(12, 3)), lambda: image()),
    Net("norm without weights", lambda: Residual(lambda c: nn.BatchNorm2d(c, affine=False)), lambda: image(2, 4)),
    Net("batchnorm1d", lambda: chain(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 3)), lambda: randn(5, 4)),
    Net("prelu", lambda: chain(nn.Conv2d(2, 4, 3), nn.PReLU(4), nn.Conv2d(4, 3, 3), nn.PReLU(), nn.Flatten(), nn.Linear(3, 3)), lambda: image()),
    Net("depthwise", lambda: chain(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.Tanh(), nn.Conv2d(6, 3, 3), nn.Flatten()), lambda: image()),
    Net("grouped", lambda: chain(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 1, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()), lambda: image(), 2),
    Net("transposed", lambda: chain(nn.ConvTranspose2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, bias=False), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.AvgPool2d(3), nn.Flatten()), lambda: image(size=3)),
    Net("convolution over folded rows", lambda: chain(nn.Flatten(0, 1), nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Unflatten(0, (-1, 4)), nn.Flatten()), lambda: randn(3, 4, 2, 5)),
    Net("gated", Gated, lambda: image(), 2),
    Net("channels last", ChannelsLast, lambda: image(2, 6)),
]  # fmt: skip
BY_NAME = {net.name: net for net in NETS}


def prepared(name: str) -> tuple[nn.Module, Tensor, list[ChannelGroup]]:
    model, x = BY_NAME[name].model(), BY_NAME[name].batch()
    return model, x, channel_groups(model, x[:2])


CRITERIA = [
    TPVImportance(probes=99),
    TPVImportance(probes=99, parameters="all"),
    JBR(parameters="consumers"),
    JBR(),
]


@pytest.mark.parametrize("net", NETS, ids=[net.name for net in NETS])
def test_scores_are_the_formula(net: Net) -> None:
    model, x = net.model(), net.batch()
    groups = channel_groups(model, x[:2])
    assert groups
    assert max(group.tied for group in groups) == net.tied
    for criterion in CRITERIA:
        if net.overlapping and criterion.parameters == "all":
            continue
        expected = dense(model, x, groups, criterion)
        for chunk in (1, 2, len(x)):
            with assert_unchanged(model):
                found = score(model, x, groups, criterion, chunk_size=chunk)
            assert_equal(flat(found), expected.mean(0))
    stderr = torch.cat([group.stderr for group in found.values()])
    assert_equal(stderr, expected.std(0) / len(x) ** 0.5)


def test_a_fork_a_concatenation_and_a_flattening_have_their_readers() -> None:
    groups = {g.name: g for g in prepared("residual")[2]}
    readers = {name: {m.module for m in g.members if m.role == "consumer"} for name, g in groups.items()}
    assert readers == {
        "conv2": {"conv1", "side", "mix"},
        "conv1": {"conv2"},
        "side": {"mix"},
        "mix": {"head"},
    }
    assert [m.channel.tolist() for m in groups["mix"].members if m.module == "head"] == [
        [0] * 4 + [1] * 4 + [2] * 4
    ]


def test_a_channel_goes_with_its_gate() -> None:
    model, x, [group] = prepared("gated")
    assert (group.width, group.channels(1)) == (3, [1, 4])
    assert score(model, x, [group])["up"].value.min() > 0


def test_what_is_written_over_is_scored_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = Overwritten(True).double().eval(), image()
    twin = Overwritten(False).double().eval()
    twin.load_state_dict(model.state_dict())
    groups, criterion = channel_groups(twin, x[:2]), TPVImportance(99)
    found = score(model, x, groups, criterion, chunk_size=2)
    assert_equal(flat(found), dense(twin, x, groups, criterion).mean(0))


def test_one_probe_is_unbiased() -> None:
    """On a fixed budget: 400 readings of 5 examples, |z| < 4 for every channel."""
    model, x, groups = prepared("residual")
    exact = dense(model, x, groups, TPVImportance()).mean(0)
    draws = torch.stack([flat(score(model, x, groups, generator=seed)) for seed in range(100)])
    alive = exact > 0
    assert alive.sum() >= 9
    assert (draws[:, ~alive] == 0).all()
    z = (draws.mean(0) - exact)[alive] / (draws.std(0)[alive] / len(draws) ** 0.5)
    assert z.abs().max() < 4
    assert (draws.std(0) / exact)[alive].max() > 0.1


def test_probes_do_not_depend_on_chunks_and_batches_hold_all_examples() -> None:
    model, x, groups = prepared("residual")
    whole = flat(score(model, x, groups))
    for chunk in (1, 3):
        assert_equal(flat(score(model, x, groups, chunk_size=chunk)), whole)
    parts = [x[:1], x[1:2], x[2:]]
    exact = dense(model, x, groups, JBR())
    found = score(model, parts, groups, JBR())
    assert_equal(flat(found), exact.mean(0))
    assert found.metadata["examples"] == 5


@pytest.mark.parametrize("output", ["centered", "probabilities", "kl"])
def test_what_counts_of_the_outputs(output) -> None:
    model, x, groups = prepared("residual")
    for criterion in (TPVImportance(99, output=output), TPVImportance(99, "all", output=output)):
        assert_equal(
            flat(score(model, x, groups, criterion)), dense(model, x, groups, criterion).mean(0), 1e-9
        )


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


def test_labels_of_the_batch_with_some_to_ignore() -> None:
    model, x, groups = prepared("residual")
    y = torch.tensor([2, -100, 0, 1, 1])
    expected = dense(model, x, groups, JC(), y)
    assert (expected[1] == 0).all()
    for batch in ((x, y), [x, y]):
        assert_equal(flat(score(model, [batch], groups, JC(), chunk_size=2)), expected.sum(0) / 4)


@pytest.mark.parametrize(("label", "message"), [(3, "a label is 3, and there are 3 classes")])
def test_labels_that_are_no_classes_are_refused(label: int, message: str) -> None:
    model, x, groups = prepared("mlp")
    y = torch.tensor([0, 1, label, 0, 0])
    with pytest.raises(TPVError, match=message):
        score(model, [(x, y)], groups, JC())


@pytest.mark.parametrize(
    "batch", [lambda x: x, lambda x: (x, torch.zeros(5)), lambda x: (x, torch.zeros(4, dtype=torch.long))]
)
def test_labels_are_needed(batch) -> None:
    model, x, groups = prepared("mlp")
    with pytest.raises(TPVError, match="JC needs integer labels of shape"):
        score(model, [batch(x)], groups, JC(), chunk_size=5)


def test_frozen_labels_are_those_of_the_unpruned_model() -> None:
    model, x, groups = prepared("mlp")
    labels = freeze(model, [x[:2], x[2:]], JBR())
    before = model(x).argmax(1)
    assert torch.equal(torch.cat(list(labels.labels)), before)
    with torch.no_grad():
        model[4].bias[(before[0] + 1) % 3] += 9
    assert not torch.equal(model(x).argmax(1), before)
    found = score(model, [x[:2], x[2:]], groups, JBR(), frozen=labels, chunk_size=1)
    assert_equal(flat(found), dense(model, x, groups, JBR(), before).mean(0))
    assert freeze(model, [x], JC()).labels is None
    assert freeze(model, [x], TPVImportance()).labels is None


def test_frozen_labels_belong_to_their_examples() -> None:
    model, x, groups = prepared("mlp")
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = score(
        model, [x[:2], x[2:]], groups, JBR(), frozen=Frozen([labels[:2], labels[2:]], None), chunk_size=1
    )
    assert_equal(flat(found), dense(model, x, groups, JBR(), labels).mean(0))


def test_frozen_labels_refuse_other_data() -> None:
    model, x, groups = prepared("mlp")
    labels = freeze(model, [x], JBR())
    for data in ([x[:3]], [x, x], [x[:2], x[2:]]):
        with pytest.raises(TPVError, match="the data has changed since the unpruned model saw it"):
            score(model, data, groups, JBR(), frozen=labels)
    with pytest.raises(TPVError, match="this loader shuffles"):
        freeze(model, DataLoader(TensorDataset(x), shuffle=True), JBR())


def test_a_confidence_leaves_examples_out() -> None:
    model, x, groups = prepared("mlp")
    top = model(x).softmax(1).max(1).values
    limit = top.sort().values[2].item()
    kept = top >= limit
    found = score(model, x, groups, JBR(confidence=limit))
    assert found.metadata["examples"] == 3
    assert_equal(flat(found), dense(model, x, groups, JBR())[kept].mean(0))
    with pytest.raises(TPVError, match="no example counts"):
        score(model, x, groups, JBR(confidence=0.9999))


def test_tokens_have_labels_of_their_own() -> None:
    model, tokens, groups = prepared("tokens")
    labels = torch.tensor([[0, 1, -100], [2, 2, 0], [-100, -100, -100]])
    expected = dense(model, tokens, groups, JC(parameters="consumers"), labels)
    found = score(
        model, [{"tokens": tokens, "labels": labels}], groups, JC(parameters="consumers"), chunk_size=2
    )
    assert_equal(flat(found), expected.sum(0) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be scored
# ---------------------------------------------------------------------------------------------------------------------


class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.transpose(0, 1)))).mean(0)


HIDDEN = ChannelGroup(
    "layer",
    6,
    (
        Member("layer", "producer", torch.arange(6), torch.arange(6)),
        Member("head", "consumer", torch.arange(6), torch.arange(6)),
    ),
)


@pytest.mark.parametrize("output", ["logits", "centered", "probabilities", "kl"])
@pytest.mark.parametrize("length", [3, 4, 64])
def test_reordered_rows_are_refused(length: int, output) -> None:
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        model, x = TimeMajor().to(dtype).eval(), randn(4, length, 3).to(dtype)
        with pytest.raises(TPVError, match="cannot be attributed to"):
            score(model, [x[:1], x], [HIDDEN], TPVImportance(output=output))
        criterion = TPVImportance(9, "all", output=output)
        if dtype == torch.float64:
            assert_equal(
                flat(score(model, x, [HIDDEN], criterion, chunk_size=1)),
                dense(model, x, [HIDDEN], criterion).mean(0),
            )


@pytest.mark.parametrize("output", ["logits", "centered", "probabilities", "kl"])
@pytest.mark.parametrize(
    "net",
    [
        net
        for net in NETS
        if net.name in ("residual", "instance norm", "channels last", "group norm", "prelu")
    ],
    ids=lambda net: net.name,
)
def test_float32_raises_no_false_alarm(net: Net, output) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model, x = net.build().eval(), torch.randn(8, *net.batch().shape[1:], generator=seeded(seed))
        groups = channel_groups(model, x[:2])
        found = score(model, x, groups, TPVImportance(99, "all", output=output), chunk_size=3)
        expected = score(
            copy.deepcopy(model).double(), x.double(), groups, TPVImportance(99, "all", output=output)
        )
        assert_equal(flat(found), flat(expected), 1e-3)


def test_terms_that_cancel_raise_no_false_alarm() -> None:
    """In front of a norm over positions, the sum of a channel times its gradient is zero but for rounding."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.mix, self.head = (
                nn.Linear(16, 6, bias=False),
                nn.Linear(300, 200),
                nn.Linear(200, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            z = F.instance_norm(self.layer(x).transpose(1, 2)).transpose(1, 2)
            return self.head(torch.tanh(self.mix(z.flatten(1))))

    torch.manual_seed(0)
    group = ChannelGroup("layer", 6, HIDDEN.members[:1])
    assert score(Normed().eval(), 1000 * torch.randn(6, 50, 16), [group], JBR()).metadata["examples"] == 6


class ByHand(nn.Module):
    """A reader that is no module: a weight used functionally, or a raw parameter."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.layer, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.raw, self.scale = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.rand(4) + 1)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.layer(x))
        if self.use == "functional":
            x = F.linear(x, self.other.weight)
        if self.use == "raw":
            x = x @ self.raw
        if self.use == "scale":
            x = x * self.scale
        if self.use == "recurrent":
            x = self.rnn(x.unsqueeze(1))[0][:, 0]
        if self.use == "convolution":
            x = F.conv1d(x.unsqueeze(-1), self.raw.unsqueeze(-1)).squeeze(-1)
        return self.head(x)


@pytest.mark.parametrize("use", ["functional", "raw", "recurrent", "convolution"])
def test_readers_by_hand_are_refused(use: str) -> None:
    torch.manual_seed(0)
    model, x = ByHand(use).double().eval(), randn(5, 4)
    groups = {g.name: g for g in channel_groups(model, x[:2])}
    with pytest.raises(TPVError, match="whose weights cannot be scored by channel"):
        score(model, x, [groups["layer"]])


def test_a_raw_scale_is_passed_by_consumers_and_refused_otherwise() -> None:
    torch.manual_seed(0)
    model, x = ByHand("scale").double().eval(), randn(5, 4)
    groups = channel_groups(model, x[:2])
    assert_equal(
        flat(score(model, x, groups, TPVImportance(9))), dense(model, x, groups, TPVImportance()).mean(0)
    )
    with pytest.raises(TPVError, match="scale, a parameter outside of a layer"):
        score(model, x, groups, JBR())


def test_a_linear_layer_that_the_trace_misses_is_no_elementwise_operation() -> None:
    """``relu_()`` on a view of a linear layer's output hides the layer from Torch-Pruning."""
    torch.manual_seed(3)
    model, x = settled(InPlace()), image(3)
    [group] = channel_groups(model, x[:2])
    with pytest.raises(TPVError, match="an operation outside of a layer"):
        score(model, x, [group])


def test_attention_and_recurrent_modules_are_refused() -> None:
    torch.manual_seed(0)

    class Reading(nn.Module):
        def __init__(self, reader: nn.Module) -> None:
            super().__init__()
            self.up, self.reader, self.head = nn.Linear(3, 4), reader, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.up(x))
            read = self.reader(x, x, x) if isinstance(self.reader, nn.MultiheadAttention) else self.reader(x)
            return self.head(read[0]).mean(1)

    model, x = Reading(nn.MultiheadAttention(4, 2, batch_first=True)).double().eval(), randn(3, 5, 3)
    groups = {g.name: g for g in channel_groups(model, x[:2])}
    with pytest.raises(TPVError, match=r"go through .*reader, whose weights cannot be scored"):
        score(model, x, [groups["up"]])
    recurrent = Reading(nn.LSTM(4, 4, batch_first=True)).double().eval()
    [group] = channel_groups(recurrent, x[:2])
    with pytest.raises(TPVError, match=r"channels of up go through .* Torch-Pruning cannot follow"):
        score(recurrent, x, [group])


def test_a_layer_that_is_not_run_is_no_zero() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.side, self.head = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.layer(x))
            return self.head(h) if x.sum() < 1e6 else self.side(h)

    members = (*HIDDEN.members, Member("side", "consumer", torch.arange(6), torch.arange(6)))
    with pytest.raises(TPVError, match="side was not called as a module"):
        score(Skipping().eval(), torch.randn(4, 3), [ChannelGroup("layer", 6, members)])


def test_broken_weights_and_data_are_refused() -> None:
    model, x, groups = prepared("mlp")
    with pytest.raises(TPVError, match="the batch holds NaN"):
        score(model, x * torch.nan, groups)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(TPVError, match=r"0\.weight holds NaN or infinity"):
        score(model, x, groups)
    with pytest.raises(TPVError, match="there is no group"):
        score(model, x, [])
    with pytest.raises(TPVError, match="criterion must be one of"):
        score(model, x, groups, "jbr")


def test_a_dead_channel_scores_zero() -> None:
    model, x, groups = prepared("residual")
    with torch.no_grad():
        model.conv2.weight[:, 1] = 0
    scores = score(model, x, groups)
    assert scores["conv1"].value[1] == 0
    assert (scores["conv1"].value[[0, 2, 3]] >= 0).all()


def test_frozen_layers_are_scored_too() -> None:
    model, x, groups = prepared("residual")
    expected = flat(score(model, x, groups, JBR()))
    model.stem.requires_grad_(False)
    model.norm.requires_grad_(False)
    model.conv1.requires_grad_(False)
    with assert_unchanged(model):
        assert_equal(flat(score(model, x, channel_groups(model, x[:2]), JBR())), expected)


# ---------------------------------------------------------------------------------------------------------------------
# The model stays as it was, and halves of the examples
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_faults_leave_the_model_unchanged(error: type[BaseException]) -> None:
    x = image(2, 4)
    groups = prepared("residual")[2]
    survived = faults_survived(
        error, range(1, 99), BY_NAME["residual"].model, lambda m: score(m, x, groups, JBR(), chunk_size=2)
    )
    assert survived >= 4


@pytest.mark.parametrize(
    "place",
    [
        "tpv.pruning.scores.taps.Tap.term",
        "tpv.pruning.scores.scoring._Scoring._by_channel",
        "tpv.pruning.scores.scoring.narrow",
        "tpv.pruning.scores.channel_scores.ScoreSums.update",
    ],
)
def test_faults_inside_leave_the_model_unchanged(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, groups = prepared("residual")
    model.stem.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, fail)
    with assert_unchanged(model), pytest.raises(KeyboardInterrupt):
        score(model, x, groups)


def test_reliability_is_of_two_halves_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model, x = BY_NAME["mlp"].model(), randn(60, 4)
    groups = channel_groups(model, x[:2])
    whole = score(model, x, groups, JBR())
    single = score(model, list(x.split(1)), groups, JBR())
    assert 0.5 < whole.reliability <= 1
    assert single.reliability == pytest.approx(whole.reliability, abs=1e-9)
    assert score(model, x[:1], groups, JBR()).reliability != score(model, x[:1], groups, JBR()).reliability


def test_sums_of_shards_add_up() -> None:
    """Where the first shard has an even number of examples, so that halves stay halves."""
    scores, counted = randn(20, 3).square(), torch.arange(20) % 5 > 0
    whole, first, second = (ScoreSums.zero(3) for _ in range(3))
    whole.update(scores, counted)
    first.update(scores[:8], counted[:8])
    second.update(scores[8:], counted[8:])
    first.merge(second)
    for name, value in vars(whole).items():
        assert torch.allclose(torch.as_tensor(getattr(first, name)), torch.as_tensor(value)), name
