"""Importances in Torch-Pruning's own pruners."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from cifar10_resnet20 import CifarResNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import hugging

import tpv.pruning
from tpv import TPVError
from tpv.integrations.torch_pruning import JBRImportance, JCImportance, TPVGroupImportance, channel_groups
from tpv.pruning import replace_padding_shortcuts
from tpv.testing import assert_unchanged

WIDTH = 12


class Small(nn.Module):
    """Two convolutions behind a residual stream, or in a chain."""

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(2, WIDTH, 3),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(WIDTH) if norm == "batch" else nn.GroupNorm(3, WIDTH) for _ in range(3)
        )
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.conv1(x)))
        x = F.relu(x + self.norms[2](self.conv3(F.relu(self.norms[1](self.conv2(x))))))
        return self.linear(x.mean((2, 3)))


class Inverted(nn.Module):
    """MobileNetV2's block: expansion, depthwise convolution, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.expand = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.linear((x + self.project(self.depthwise(self.expand(x)))).mean((2, 3)))


def small(norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    return Small(norm).eval()


X = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def widths(model: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def pruner(model: nn.Module, importance: object, **options: object) -> tp.pruner.BasePruner:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    return tp.pruner.BasePruner(model, X[:1], importance, ignored_layers=[linear], **options)


@pytest.mark.parametrize(
    "importance",
    [
        lambda: TPVGroupImportance(X),
        lambda: JBRImportance(X),
        lambda: JCImportance([(X, Y)]),
        lambda: TPVGroupImportance(X, parameters="all", probes=3),
    ],
)
def test_importances_are_the_scores(importance) -> None:
    model, imp = small(), importance()
    graph = tp.DependencyGraph().build_dependency(model, X[:1])
    expected = tpv.pruning.score(model, imp.data, channel_groups(model, X[:2]), imp.criterion)
    with assert_unchanged(model):
        found = {
            graph._module2name[group[0].dep.target.module]: imp(group)
            for group in graph.get_all_groups(ignored_layers=[model.linear])
        }
    for name, values in found.items():
        assert torch.allclose(values, expected[name].value, rtol=1e-6, atol=1e-11)


def test_a_part_of_a_layer_called_directly_and_any_root_of_a_group() -> None:
    model, imp = small(), TPVGroupImportance(X)
    graph = tp.DependencyGraph().build_dependency(model, X[:1])
    stream = imp(graph.get_pruning_group(model.conv1, tp.prune_conv_out_channels, list(range(WIDTH))))
    inner = imp(graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(WIDTH))))
    assert not torch.equal(stream, inner)
    for root, fn, expected in [
        (model.conv1, tp.prune_conv_out_channels, stream),
        (model.conv3, tp.prune_conv_out_channels, stream),
        (model.norms[0], tp.prune_batchnorm_out_channels, stream),
        (model.linear, tp.prune_linear_in_channels, stream),
        (model.conv2, tp.prune_conv_in_channels, stream),
        (model.conv3, tp.prune_conv_in_channels, inner),
    ]:
        group = graph.get_pruning_group(root, fn, idxs=[2, 6, 9])
        assert torch.equal(imp(group), expected[[2, 6, 9]])


def test_a_reader_of_a_concatenation_knows_the_channels_of_all() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.left(x), self.right(x)], 1).tanh())

    torch.manual_seed(0)
    model, imp = Joined().eval(), TPVGroupImportance(torch.randn(9, 3))
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 3))
    both = imp(graph.get_pruning_group(model.head, tp.prune_linear_in_channels, list(range(6))))
    parts = [
        imp(graph.get_pruning_group(m, tp.prune_linear_out_channels, list(range(m.out_features))))
        for m in (model.left, model.right)
    ]
    assert torch.equal(both, torch.cat(parts))
    alone = TPVGroupImportance(imp.data)
    assert torch.allclose(
        alone(graph.get_pruning_group(model.right, tp.prune_linear_out_channels, [1])),
        parts[1][1:],
        atol=1e-9,
    )


@pytest.mark.parametrize(("norm", "ratio"), [("batch", 0.25), ("batch", 0.5), ("group", 0.25)])
def test_exactly_the_requested_number_goes_although_scores_are_equal(norm: str, ratio: float) -> None:
    model = small(norm)
    with torch.no_grad():
        for layer in (model.conv2, model.conv3, model.linear):
            layer.weight[:, 2:10] = 0
    pruner(model, TPVGroupImportance(X), pruning_ratio=ratio, global_pruning=True).step()
    assert WIDTH - model.conv1.out_channels + WIDTH - model.conv2.out_channels == 2 * WIDTH * ratio
    assert model(X).shape == (16, 3)


def test_scores_follow_the_weights() -> None:
    model, imp = small(), TPVGroupImportance(X)
    graph = tp.DependencyGraph().build_dependency(model, X[:1])

    def ask() -> Tensor:
        return imp(
            graph.get_pruning_group(
                model.conv2, tp.prune_conv_out_channels, list(range(model.conv2.out_channels))
            )
        )

    before = ask()
    assert torch.equal(ask(), before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    after = ask()
    assert not torch.equal(after, before)
    model.conv3.weight.data.mul_(2)
    doubled = ask()
    assert not torch.equal(doubled, after)
    graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, [0, 5]).prune()
    assert len(ask()) == WIDTH - 2
    other = small()
    graph = tp.DependencyGraph().build_dependency(other, X[:1])
    assert torch.equal(
        imp(graph.get_pruning_group(other.conv2, tp.prune_conv_out_channels, list(range(WIDTH)))), before
    )


def test_pseudo_labels_are_frozen_for_each_model() -> None:
    model, imp = small(), JBRImportance(X)
    graph = tp.DependencyGraph().build_dependency(model, X[:1])
    labels = model(X).argmax(1)
    imp(graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, [0]))
    with torch.no_grad():
        model.linear.bias.copy_(
            torch.tensor([0.0, 9.0, 0.0]) if labels[0] != 1 else torch.tensor([9.0, 0.0, 0.0])
        )
    found = imp(graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(WIDTH))))
    expected = tpv.pruning.score(model, [(X, labels)], channel_groups(model, X[:2]), tpv.pruning.JC())
    assert torch.allclose(found, expected["conv2"].value, rtol=1e-5)
    other = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(other, X[:1])
    fresh = imp(graph.get_pruning_group(other.conv2, tp.prune_conv_out_channels, list(range(WIDTH))))
    assert torch.allclose(
        fresh,
        tpv.pruning.score(other, X, channel_groups(other, X[:2]), tpv.pruning.JBR())["conv2"].value,
        rtol=1e-5,
    )
    assert not torch.allclose(fresh, found, rtol=1e-2)


def test_labels_of_a_shuffling_loader_stay_with_their_inputs() -> None:
    model, loader = small(), DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    graph = tp.DependencyGraph().build_dependency(model, X[:1])
    group = graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(WIDTH)))
    assert torch.allclose(JCImportance(loader)(group), JCImportance([(X, Y)])(group), rtol=1e-4)
    with pytest.raises(TPVError, match="this loader shuffles"):
        JBRImportance(loader)(group)


def test_a_model_in_training_mode_stays_in_it() -> None:
    model, imp = small(), TPVGroupImportance(X)
    graph = tp.DependencyGraph().build_dependency(model, X[:1])
    group = graph.get_pruning_group(model.conv2, tp.prune_conv_out_channels, list(range(WIDTH)))
    expected = imp(group)
    model.train()
    with assert_unchanged(model), torch.no_grad():
        assert torch.equal(TPVGroupImportance(X)(group), expected)
    assert model.training


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_ratio": 0.5},
        {"pruning_ratio": 0.5, "global_pruning": True, "iterative_steps": 3},
        {"pruning_ratio": 0.5, "global_pruning": True, "isomorphic": True},
        {"pruning_ratio": 0.4, "round_to": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["BasePruner", "MagnitudePruner", "GroupNormPruner"])
def test_options_of_the_pruners(kind: str, options: dict[str, object]) -> None:
    model = small()
    run = getattr(tp.pruner, kind)(
        model, X[:1], importance=TPVGroupImportance(X), ignored_layers=[model.linear], **options
    )
    before = widths(model)
    for _ in range(options.get("iterative_steps", 1)):
        run.step()
    after = widths(model)
    assert sum(after.values()) < sum(before.values())
    if "round_to" in options:
        assert {n % 4 for n in after.values()} == {0}
    assert model(X).isfinite().all()


def test_ratios_of_single_layers() -> None:
    model = small()
    pruner(model, TPVGroupImportance(X), pruning_ratio=0.0, pruning_ratio_dict={model.conv2: 0.75}).step()
    assert widths(model) == {"conv1": WIDTH, "conv2": 3, "conv3": WIDTH}


def test_a_depthwise_convolution_goes_with_its_channels() -> None:
    torch.manual_seed(0)
    model = Inverted().eval()
    with torch.no_grad():
        model.project[0].weight[:, ::2] = 0
        model.expand[1].bias.fill_(0.5)
        model.depthwise[1].bias.fill_(0.5)
    pruner(model, TPVGroupImportance(X), pruning_ratio_dict={model.expand[0]: 0.5}, pruning_ratio=0.0).step()
    assert (model.expand[0].out_channels, model.depthwise[0].groups, model.project[0].in_channels) == (
        6,
        6,
        6,
    )
    assert (model.project[0].weight != 0).all()


@pytest.mark.parametrize(
    ("kind", "settings", "batch"),
    [
        ("ViTForImageClassification", {"image_size": 8, "patch_size": 4}, {"pixel_values": torch.randn(6, 3, 8, 8)}),
        ("BertForSequenceClassification", {"vocab_size": 13, "max_position_embeddings": 16},
         {"input_ids": torch.arange(30).reshape(6, 5) % 13, "attention_mask": (torch.arange(5) < torch.tensor([[5], [3], [4], [2], [5], [5]])).long()}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize("importance", [TPVGroupImportance, JBRImportance])
def test_hidden_channels_of_transformers(
    kind: str, settings: dict[str, int], batch: dict[str, Tensor], importance
) -> None:
    torch.manual_seed(0)
    model = hugging(
        kind,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
        **settings,
    )().eval()
    hidden = {
        m: 0.5 for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 12
    }
    others = [
        m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding) and m not in hidden
    ]
    run = tp.pruner.BasePruner(
        model, batch, importance([batch]), pruning_ratio=0.5, ignored_layers=others, output_transform=lambda out: out.logits
    )  # fmt: skip
    run.step()
    assert [m.out_features for m in hidden] == [6, 6]
    assert model(**batch).logits.shape == (6, 3)


def test_positions_shared_by_a_batch_are_scored_one_example_at_a_time() -> None:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "num_labels": 3,
    }
    model = hugging(
        "BertForSequenceClassification", vocab_size=13, max_position_embeddings=16, **settings
    )().eval()
    batch = {"input_ids": torch.arange(15).reshape(3, 5) % 13}
    graph = tp.DependencyGraph().build_dependency(model, batch, output_transform=lambda out: out.logits)
    stream = graph.get_pruning_group(
        model.bert.encoder.layer[0].output.dense, tp.prune_linear_out_channels, list(range(8))
    )
    with pytest.raises(TPVError, match="score with chunk_size=1"):
        JBRImportance([batch])(stream)
    assert (JBRImportance([batch], chunk_size=1)(stream) > 0).all()


def test_a_group_that_cannot_be_scored_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    imp, graph = (
        TPVGroupImportance(torch.randn(5, 2)),
        tp.DependencyGraph().build_dependency(model, torch.randn(2, 2)),
    )
    with pytest.raises(TPVError, match="no convolution or linear layer takes the channels of 2"):
        imp(graph.get_pruning_group(model[2], tp.prune_linear_out_channels, [0]))
    assert imp(graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [0])).shape == (1,)
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(TPVError, match="NaN"):
        imp(graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [0]))


def test_resnet20_in_steps() -> None:
    torch.manual_seed(0)
    model, x = CifarResNet().eval(), torch.randn(8, 3, 16, 16)
    expected = model(x)
    replace_padding_shortcuts(model, x)
    assert torch.equal(model(x), expected)
    channels = sum(
        widths(model)[name] for name in widths(model) if name.endswith("conv1") or "shortcut" in name
    )
    importance = JBRImportance(x)
    run = tp.pruner.BasePruner(
        model,
        x[:1],
        importance,
        global_pruning=True,
        pruning_ratio=0.3,
        iterative_steps=3,
        max_pruning_ratio=0.9,
        ignored_layers=[model.linear],
    )
    for k in range(1, 4):
        run.step()
        left = sum(
            widths(model)[name] for name in widths(model) if name.endswith("conv1") or "shortcut" in name
        )
        assert channels - left == channels - int(channels * (1 - 0.1 * k))
    assert model(x).isfinite().all()
    again = CifarResNet().eval()
    replace_padding_shortcuts(again, x)
    tp.DependencyGraph().build_dependency(again, x[:1]).load_pruning_history(run.pruning_history())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_padding_shortcuts_are_traced_wrongly_and_that_is_told() -> None:
    torch.manual_seed(0)
    model, x = CifarResNet(8).eval(), torch.randn(8, 3, 16, 16)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    run = tp.pruner.BasePruner(
        model,
        x[:1],
        TPVGroupImportance(x),
        global_pruning=True,
        pruning_ratio=0.3,
        ignored_layers=[model.linear],
    )
    with pytest.raises(
        TPVError, match=r"the traced graph is wrong at conv1.*replace_padding_shortcuts.*ignored_layers"
    ):
        run.step()
    unchecked = TPVGroupImportance(x)
    unchecked.verify = False
    tp.pruner.BasePruner(
        model, x[:1], unchecked, global_pruning=True, pruning_ratio=0.3, ignored_layers=[model.linear]
    ).step()
