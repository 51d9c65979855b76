"""Linear segments: totals that meet the measured ones, by the decoupled network and by counting spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from architectures import ARCHITECTURES
from capalloc._energy.carriers import find
from capalloc._energy.decoupled import Decoupled
from capalloc._graph.capture import capture
from capalloc._model.problem import prepare
from capalloc.solvers import Segments
from segmented import CASES, Attention, PreNorm, bottleneck
from zoo import gaussian
from zoo import seeded_module as build


def counted(model: nn.Module, x: Tensor, params: list[str] | None = None) -> int:
    """The total by counting symmetries, as networks too large for all rows get it."""
    return round(capalloc.propagate(model, x, solver=Segments(max_params=0), params=params).total)


@pytest.mark.proves("4", "linear segments", oracle="measured capacity, r (m + n - r)")
@pytest.mark.parametrize("name", CASES)
def test_totals_meet_the_measured_ones(name):
    make, shape, params, closed = CASES[name]
    model, x = build(make).eval(), 4 * gaussian(*shape)  # large, so that every gate opens and shuts
    measured = capalloc.measure(model, x, params=params)
    found = capalloc.propagate(model, x, solver=Segments(4), params=params)
    assert found.attrs["rank"] == round(measured.total) == round(found.total)
    if closed is not None:
        assert found.attrs["rank"] == closed
    assert counted(model, x, params) == found.attrs["rank"]
    assert found.attrs["num_params"] - found.attrs["unused_params"] - found.attrs["symmetries"] == found.attrs["rank"]
    assert "lower bound" not in repr(found)


@pytest.mark.proves("4", "one attention layer", oracle="measured capacity, 9 + 6")
def test_one_attention_layer_measures_15_of_44():
    """9 of the product of queries and keys, 6 of that of values and outputs."""
    model, x = build(lambda: Attention(3, 4, 2)), 4 * gaussian(20, 5, 3)
    assert sum(p.numel() for p in model.parameters()) == 44
    assert capalloc.measure(model, x).total == pytest.approx(15, rel=1e-6)
    assert capalloc.measure(model, x, params=["v.weight", "o.weight"]).total == pytest.approx(6, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "exact", "draws"),  # as many examples, and draws of signs for each, as give the rank in full
    [
        ("ResNet", True, 6),
        ("pre-activation ResNet", True, 4),
        ("MobileNet", True, 6),
        ("squeeze-and-excite", True, 4),
        ("DenseNet", True, 4),
        ("Inception", True, 4),
        ("ConvNeXt", False, 5),
        ("MLP-Mixer", False, 5),
        ("GRU", False, 4),
        ("Swin", False, 4),
        ("GPT", False, 4),
    ],
)
def test_counted_symmetries_of_architectures_are_a_lower_bound(name, exact, draws):
    architecture = ARCHITECTURES[name]
    model, x = architecture.build(), 3 * gaussian(6, *architecture.shape)[:draws]
    found = capalloc.propagate(model, x, solver=Segments(draws))
    total = counted(model, x)
    assert total == found.attrs["rank"] if exact else total >= found.attrs["rank"]
    assert total <= round(capalloc.propagate(model, x, table=False, solver="markov").total)


def test_segments_need_gates_from_data():
    with pytest.raises(ValueError, match="num_probes must be at least 2, for a standard error, got 1"):
        Segments(1)
    with pytest.raises(ValueError, match=r"solver='segments' .* gates='data'"):
        capalloc.propagate(build(lambda: bottleneck(3, 2, 2)), gaussian(2, 3), solver="segments", gates="unit")


@pytest.mark.proves("4", "linear segments: 1 - (1 - a_j)(1 - b_i)", oracle="leverage scores by QR")
def test_maps_of_one_segment_are_the_leverage_scores_of_its_tangent_space():
    # W2 X + Y W1 with orthonormal rows b of W1: entry (j, i) has leverage 1 - (1 - a_j)(1 - b_i).
    model = build(lambda: bottleneck(6, 2, 5))
    W1, W2 = model[0].weight.detach(), model[1].weight.detach()
    leverage = lambda W: torch.linalg.qr(W).Q.square().sum(1)  # noqa: E731
    a, b = leverage(W2), leverage(W1.T)
    expected = (1 - (1 - a[:, None]) * (1 - b)).sum(0)
    found = capalloc.propagate(model, gaussian(3, 6), solver=Segments(2))
    np.testing.assert_allclose(found.capacity, expected, rtol=1e-9)
    np.testing.assert_allclose(found.capacity.standard_error, 0, atol=1e-9)  # no gate, nothing random


def test_networks_gated_everywhere_have_the_markov_rules_map_and_its_error_falls():
    model, x = build(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))), gaussian(20, 5)
    exact = capalloc.propagate(model, x, solver="hessian")
    errors = []
    for num_probes in (16, 256):
        found = capalloc.propagate(model, x, solver=Segments(num_probes))
        assert found.attrs["rank"] == exact.attrs["rank"]
        deviation = abs(found.capacity - exact.capacity)
        assert float((deviation / found.capacity.standard_error).mean()) < 3
        errors.append(float(found.capacity.standard_error.mean()))
    assert errors[0] / errors[1] > 3  # sqrt(16) = 4 if draws were independent of the G they are held against


@pytest.mark.proves("4", "random signs of frozen gates", oracle="the network itself")
def test_the_decoupled_network_is_the_network_where_nothing_is_gated():
    model, x = build(lambda: bottleneck(4, 3, 2, bias=True)), gaussian(1, 4)
    problem = prepare(model, x)
    graph = capture(problem, 1)
    network = Decoupled(graph, find(graph))
    params = {name: p.detach() for name, p in problem.params.items()}
    np.testing.assert_allclose(network.at(x)(params, x, []), model(x).detach(), rtol=1e-12)


@pytest.mark.proves("4", "random signs of frozen gates", oracle="squared weights and gates by hand")
def test_mean_square_over_signs_is_the_path_energy():
    model, x = build(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))), gaussian(1, 4)
    problem = prepare(model, x)
    graph = capture(problem, 1)
    network = Decoupled(graph, find(graph))
    generator = torch.Generator().manual_seed(0)
    (signs,) = network.signs(4096, generator)
    params = {name: p.detach() for name, p in problem.params.items()}
    inputs = (torch.randint(0, 2, (4096, 1, 4), generator=generator) * 2 - 1).double()
    frozen = network.at(x)
    out = torch.func.vmap(lambda h, s: frozen(params, h, [s]))(inputs, signs)
    first, _, second = model
    gate = (first(x) > 0).double()
    energy = ((first.weight**2).sum(1) + first.bias**2) * gate @ second.weight.T**2 + second.bias**2
    # The constant's sign is fixed, and drawn signs make the bias of the last layer cross nothing.
    assert float(out.square().mean()) == pytest.approx(energy.item(), rel=0.1)


def test_large_networks_get_the_markov_rules_map_with_the_count_of_segments():
    model, x = build(PreNorm), gaussian(50, 4)
    whole = capalloc.propagate(model, x, solver=Segments(2))
    large = capalloc.propagate(model, x, solver=Segments(max_params=10))
    assert round(large.total) == whole.attrs["rank"]
    assert "scaled to the count of linear segments" in repr(large)
    markov = capalloc.propagate(model, x, solver="markov")
    assert capalloc.correlation(large, markov) == pytest.approx(1.0)
    assert float(large.by_parameter.sum()) == pytest.approx(large.total)


def test_dead_channels_count_in_no_space() -> None:
    """Columns of a linear segment that no path enters are no freedom of it: the count is the measured rank."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(36, 9), nn.Linear(9, 3)).double().eval()
        x = torch.randn(60, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias[:2] = -30.0  # two channels are dead, and with them half of the linear layer's columns
    counted = capalloc.propagate(model, x, solver=Segments(max_params=1))
    assert counted.total == pytest.approx(capalloc.measure(model, x).total, abs=0.01)
