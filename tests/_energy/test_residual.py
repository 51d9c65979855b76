"""Residual blocks found in captured graphs: by architecture, by spelling, and the graph searches by brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from architectures import ARCHITECTURES
from capalloc._energy.carriers import Carriers, find
from capalloc._energy.residual import Trails
from capalloc._graph.capture import Graph, capture
from capalloc._model.problem import prepare
from transformer_models import CASES, built
from zoo import gaussian, seeded_module

aten = torch.ops.aten


def trails_of(model: nn.Module, x: Tensor) -> Trails:
    graph = capture(prepare(model, x, traced=True), len(x))
    return Trails.of(graph, find(graph))


def found(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """(name, last layer) of every block."""
    return [(block.name, block.last_layer) for block in trails_of(model, x).blocks()]


def alike(*names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


# -- architectures ------------------------------------------------------------------------------------------

GATED = [(f"layer.weight_hh_l0:{k}", "") for k in range(1, 6)]  # six steps, and the first state is 0
EXPECTED = {
    "ResNet": alike("blocks.0.2.1", "blocks.1.2.1"),
    "pre-activation ResNet": alike("blocks.0.5", "blocks.1.5"),
    "U-Net, transposed": [],
    "U-Net, interpolated": [],
    "WaveNet": alike("residuals.0", "residuals.1"),  # nobody reads the last residual
    "MobileNet": [],
    "squeeze-and-excite": [],
    "MLP-Mixer": alike("tokens.0.2", "channels.0.2"),
    "ConvNeXt": alike("scales.0"),
    "DenseNet": [],
    "Inception": [],
    "super-resolution": [],
    "LSTM": GATED,
    "GRU": GATED,
    "ViT": alike("block.attention.out", "block.mlp.2"),
    "Swin": alike(*(f"blocks.{k}.{part}" for k in (0, 1) for part in ("attention.out", "mlp.2"))),
    "BERT": alike("attention.out", "mlp.2"),
    "GPT": alike("block.attention.out", "block.mlp.2"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng():
        model = architecture.module().double().eval()
    assert found(model, architecture.examples(2)) == EXPECTED[name]


TRANSFORMERS = {
    "vit": [f"vit.layers.{k}.{p}" for k in (0, 1) for p in ("attention.o_proj", "mlp.fc2")],
    "swin": [
        f"swin.encoder.layers.{stage}.blocks.{block}.{part}"
        for stage, block in ((0, 0), (0, 1), (1, 0))
        for part in ("attention.o_proj", "mlp.fc2")
    ],
    "bert": [f"encoder.layer.{k}.{p}.dense" for k in (0, 1) for p in ("attention.output", "output")],
    "gpt2": [f"h.{k}.{p}.c_proj" for k in (0, 1) for p in ("attn", "mlp")],
    "llama": [f"layers.{k}.{p}" for k in (0, 1) for p in ("self_attn.o_proj", "mlp.down_proj")],
    "convnext": [f"convnext.encoder.stages.{k}.layers.0.layer_scale_parameter" for k in (0, 1)],
    "resnet": [f"resnet.encoder.stages.{k}.layers.0.layer.1.normalization" for k in (0, 1)],
    "bottleneck": [f"resnet.encoder.stages.{k}.layers.0.layer.2.normalization" for k in (0, 1)],
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    if name == "vit":  # 5.0 names its modules otherwise
        pytest.importorskip("transformers", minversion="5.1")
    blocks = found(built(name, "sdpa"), gaussian(2, *CASES[name].shape))
    assert [last for _, last in blocks] == [f"model.{last}" for last in TRANSFORMERS[name]]
    # A block is named after its module where that has one sum, and after the last layer elsewhere.
    own = {"bert": 2, "convnext": 2, "resnet": 2, "bottleneck": 2}.get(name, 0)
    assert sum(block != last for block, last in blocks) == (4 if name == "bert" else own)
    assert all(last.startswith(block) for block, last in blocks)


# -- spellings ----------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Four linear layers and a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Tensor], width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c, self.stem = (nn.Linear(width, width) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(width))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def relu_branch(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(torch.relu(h))


def parallel(m: Layers, x: Tensor) -> Tensor:
    h = m.stem(x)
    return h + relu_branch(m.a, h) + relu_branch(m.b, h)


def two_in_a_sum(m: Layers, x: Tensor) -> Tensor:
    h = m.stem(x)
    return h + (relu_branch(m.a, h) + relu_branch(m.b, h))


def nested(m: Layers, x: Tensor) -> Tensor:
    """A long skip round two blocks."""
    h = m.stem(x)
    k = relu_branch(m.c, h)
    k = k + relu_branch(m.a, k)
    k = k + relu_branch(m.b, k)
    return h + k


def unrolled(m: Layers, x: Tensor) -> Tensor:
    """h + eps (W relu(h) + U x_t), weights shared over time."""
    h = m.stem(x[:, 0])
    for t in range(1, x.shape[1]):
        h = h + 0.5 * (relu_branch(m.a, h) + m.b(x[:, t]))
    return h


def twice(m: Layers, x: Tensor) -> Tensor:
    """One branch added to two streams."""
    h = m.stem(x)
    f = relu_branch(m.a, h)
    return torch.relu(h + f) + torch.tanh(0.1 * h + f)


SPELLINGS = {
    "plain sum": (lambda m, x: x + relu_branch(m.a, x), alike("a")),
    "branch first": (lambda m, x: relu_branch(m.a, x) + x, alike("a")),
    "difference": (lambda m, x: x - relu_branch(m.a, x), alike("a")),
    "branch less stream": (lambda m, x: relu_branch(m.a, x) - x, alike("a")),
    "rsub": (lambda m, x: torch.rsub(relu_branch(m.a, x), x), alike("a")),
    "in place": (lambda m, x: x.clone().add_(relu_branch(m.a, x)), alike("a")),
    "alpha": (lambda m, x: torch.add(x, relu_branch(m.a, x), alpha=0.3), alike("a")),
    "scaled branch": (lambda m, x: x + 0.3 * relu_branch(m.a, x), alike("a")),
    "scaled skip": (lambda m, x: 0.3 * x + relu_branch(m.a, x) / 2, alike("a")),
    "layer scale": (lambda m, x: x + m.scale * relu_branch(m.a, x), alike("scale")),
    "post-activation": (lambda m, x: torch.relu(x + m.b(relu_branch(m.a, x))), alike("b")),
    "projected skip": (lambda m, x: m.b(x) + m.a(relu_branch(m.c, x)), alike("a")),
    "linear branch": (lambda m, x: x + m.a(x), alike("a")),
    "parallel": (parallel, alike("a", "b")),
    "two in a sum": (two_in_a_sum, [("b", "")]),  # no layer that every path of the branch passes
    "nested": (nested, [("a", "a"), ("b:1", "b"), ("b:2", "")]),
    "unrolled": (unrolled, [("b:1", ""), ("b:2", "")]),  # weights of several blocks stand for none of them
    "twice": (twice, [("a:1", "a"), ("a:2", "a")]),
    # What comes after the last layer decides whether multiplying it multiplies the branch.
    "relu at the end": (lambda m, x: x + torch.relu(m.a(x)), alike("a")),
    "tanh at the end": (lambda m, x: x + torch.tanh(m.a(x)), [("a", "")]),
    "norm at the end": (lambda m, x: x + nn.functional.layer_norm(m.a(x), (4,)), [("a", "")]),
    "gate at the end": (lambda m, x: x + m.a(x) * torch.sigmoid(m.b(x)), [("a", "")]),
    "bias at the end": (lambda m, x: x + (relu_branch(m.a, x) + m.scale), [("a", "")]),
    # No blocks.
    "two layers": (lambda m, x: m.a(torch.relu(x)) + m.b(torch.relu(x)), []),
    "activations of one": (lambda m, x: m.a(torch.relu(m.b(x)) + torch.tanh(m.b(x))), []),
    "nobody reads it": (lambda m, x: (x + relu_branch(m.a, x), m.b(x))[1], []),
    "branch without weights": (lambda m, x: m.a(x + torch.relu(x)), []),
    "to itself": (lambda m, x: m.a(x + x), []),
    "halves": (lambda m, x: m.a(x)[:, :2] + torch.relu(m.a(x))[:, 2:], []),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    forward, expected = SPELLINGS[name]
    model = seeded_module(Layers, forward)
    x = gaussian(2, 3, 4) if name == "unrolled" else gaussian(2, 4)
    assert found(model, x) == expected


def test_parts_of_a_block():
    model = seeded_module(Layers, nested)
    trails = trails_of(model, gaussian(2, 4))
    inner, second, outer = trails.blocks()
    assert inner.sum is second.source is second.skip
    assert outer.branch is second.sum
    assert outer.skip is outer.source
    assert trails.cost(outer.source, outer.branch) == (0, 1, 1)
    assert trails.cost(inner.source, inner.branch) == (0, 1, 1)


def test_a_strided_block_has_its_projection_for_skip():
    architecture = ARCHITECTURES["ResNet"]
    with torch.random.fork_rng():
        model = architecture.module().double().eval()
    trails = trails_of(model, architecture.examples(2))
    first, second = trails.blocks()
    assert trails.cost(first.source, first.skip) == (0, 0, 0)
    assert trails.cost(second.source, second.skip)[1:] == (0, 2)  # a 1 x 1 convolution and its norm
    assert trails.cost(second.source, second.branch)[1] == 1


# -- graph searches by brute force --------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Trails:
    """Random networks of relu, sums, pieces and products with a parameter, in the captured form."""
    graph = torch.fx.Graph()
    nodes = [graph.placeholder("x")]
    weight = graph.placeholder("w")
    for _ in range(draw(st.integers(1, 9))):
        pick = lambda: nodes[draw(st.integers(max(0, len(nodes) - 4), len(nodes) - 1))]  # noqa: E731
        kind = draw(st.sampled_from(["relu", "add", "add", "mul", "slice"]))
        arguments = {"relu": (), "add": (pick(),), "mul": (weight,), "slice": (0, 0, 1)}[kind]
        target = {
            "relu": aten.relu.default,
            "add": aten.add.Tensor,
            "mul": aten.mul.Tensor,
            "slice": aten.slice.Tensor,
        }[kind]
        nodes.append(graph.call_function(target, (pick(), *arguments)))
    everything = (nodes[0], weight, *nodes[1:])
    captured = Graph(everything, {"w": "layer.weight"}, {}, "x", nodes[-1], 1)
    signals = frozenset(everything) - {weight}
    return Trails.of(captured, Carriers(carrying=frozenset(everything), signals=signals))


def paths(trails: Trails, source: object, target: object) -> Iterator[list[object]]:
    """Every path, node by node; two edges between two nodes are one."""
    if source is target:
        yield [target]
        return
    for used in trails.before(target):
        for path in paths(trails, source, used):
            yield [*path, target]


@settings(max_examples=200, deadline=None)
@given(trails=graphs())
def test_the_trunk_is_what_the_network_falls_apart_without(trails):
    source, output = next(iter(trails.order)), trails.graph.output
    every = list(paths(trails, source, output))
    expected = [n for n in trails.order if all(n in path for path in every)]
    assert trails.trunk() == expected


@settings(max_examples=200, deadline=None)
@given(trails=graphs())
def test_the_cost_is_that_of_the_cheapest_path(trails):
    source, output = next(iter(trails.order)), trails.graph.output

    def cost(path: list[object]) -> tuple[int, int, int]:
        steps = path[1:]
        return tuple(
            sum(n.target is op for n in steps) for op in (aten.slice.Tensor, aten.relu.default, aten.mul.Tensor)
        )

    assert trails.cost(source, output) == min(map(cost, paths(trails, source, output)))


@settings(max_examples=200, deadline=None)
@given(trails=graphs())
def test_common_and_last_layer_by_enumeration(trails):
    nodes, source = list(trails.order), next(iter(trails.order))
    first, second = nodes[-1], nodes[len(nodes) // 2]

    def above(node: object) -> set[object]:
        return {n for path in paths(trails, source, node) for n in path}

    assert trails.common(first, second) is max(above(first) & above(second), key=trails.order.get)
    weighing = [n for n in above(first) if n.target is aten.mul.Tensor]
    assert trails.last_layer(source, first) == ("layer" if weighing else "")
    assert trails.last_weighing(source, first) is max(weighing, key=trails.order.get, default=None)
