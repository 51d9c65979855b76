"""Section 4: the Markov rule and the Hessian identity against closed forms and enumeration of paths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import capalloc
from capalloc._energy.batches import Batches
from capalloc._model.problem import prepare
from capalloc._propagate.by_solver import by_markov
from capalloc._runtime.memory import Budget
from zoo import (
    REFERENCE_CAPACITY,
    SCALED_REFERENCE_CAPACITY,
    NormedResidual,
    Residual1d,
    dense,
    gaussian,
    reference_weights,
    seeded_module,
)

SOLVERS = ("markov", "hessian")


def by_enumeration(weights: list[torch.Tensor]) -> np.ndarray:
    """kappa of a dense network from its list of paths: leverage of the parameters' constraints in path space.

    Path features are orthogonal with energy (product of weights)^2, and parameter theta's constraint on a path
    is d(product)/d theta: one row a path, one column a parameter.
    """
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    offsets = np.cumsum([0, *(w.numel() for w in weights)])
    rows, starts = [], []
    for path in itertools.product(*(range(n) for n in sizes)):
        edges = [float(w[path[k + 1], path[k]]) for k, w in enumerate(weights)]
        row = np.zeros(offsets[-1])
        for k, w in enumerate(weights):
            row[offsets[k] + path[k + 1] * w.shape[1] + path[k]] = math.prod(edges[:k] + edges[k + 1 :])
        rows.append(row)
        starts.append(path[0])
    u, s, _ = np.linalg.svd(np.array(rows), full_matrices=False)
    leverage = (u[:, s > 1e-10 * s[0]] ** 2).sum(1)
    return np.bincount(starts, leverage)


@pytest.mark.proves("4", "Hessian identity", oracle="leverage scores in the list of all paths")
@pytest.mark.proves("7", "dense networks of section 7", oracle="leverage scores in the list of all paths")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("scale", "expected"), [((1, 1, 1), REFERENCE_CAPACITY), ((1, 2, 0.3), SCALED_REFERENCE_CAPACITY)]
)
def test_reference_values(solver, scale, expected):
    weights = reference_weights(scale)
    allocation = capalloc.propagate(dense(weights), gaussian(1, 3), gates="unit", solver=solver)
    # Section 7 prints 9 digits.
    np.testing.assert_allclose(allocation.capacity, expected, atol=1e-8 if max(expected) < 10 else 5e-8)
    np.testing.assert_allclose(allocation.capacity, by_enumeration(weights), atol=1e-10)
    assert allocation.total == pytest.approx(30 - 7, abs=1e-10)
    assert allocation.bias == pytest.approx(0, abs=1e-12)


@pytest.mark.proves("4", "Dense layered networks", oracle="leverage scores in the list of all paths")
@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=4), seed=st.integers(0, 999))
def test_dense_networks_equal_enumeration_of_paths(sizes, seed):
    rng = np.random.default_rng(seed)
    weights = [torch.tensor(rng.normal(size=(b, a))) for a, b in itertools.pairwise(sizes)]
    allocation = capalloc.propagate(dense(weights), gaussian(1, sizes[0]), gates="unit", solver="markov")
    np.testing.assert_allclose(allocation.capacity, by_enumeration(weights), atol=1e-9)
    assert allocation.total == pytest.approx(sum(w.numel() for w in weights) - sum(sizes[1:-1]))


def convolution_closed_form(weights: list[np.ndarray]) -> np.ndarray:
    """Section 4's formula for convolutions away from borders, weights (out, in, kernel) from input to output."""
    depth, kernel = len(weights), weights[0].shape[2]
    energies = [w**2 for w in weights]
    below = [[np.ones(1) for _ in range(weights[0].shape[1])]]  # path energy from the input to (layer, channel)
    for w in energies:
        below.append([sum(np.convolve(w[c, d], below[-1][d]) for d in range(w.shape[1])) for c in range(w.shape[0])])
    above = [[np.ones(1) for _ in range(weights[-1].shape[0])]]  # path energy from the outputs down
    for w in reversed(energies):
        above.insert(0, [sum(np.convolve(w[c, d], above[0][c]) for c in range(w.shape[0])) for d in range(w.shape[1])])
    law = lambda e: e / e.sum()  # noqa: E731
    span = depth * (kernel - 1) + 1
    kappa = np.zeros(span)
    for layer in range(1, depth + 1):
        for c, d in itertools.product(range(weights[layer - 1].shape[0]), range(weights[layer - 1].shape[1])):
            kappa += np.convolve(np.convolve(law(above[layer][c]), np.ones(kernel)), law(below[layer - 1][d]))
        if layer < depth:
            for c in range(weights[layer - 1].shape[0]):
                kappa -= np.convolve(law(above[layer][c]), law(below[layer][c]))
    return kappa


@pytest.mark.proves("4", "Hessian identity", oracle="the closed form of convolutions")
@pytest.mark.proves("4", "Convolutions, away from borders, one output position", oracle="convolutions of laws in numpy")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_convolution_stack_equals_closed_form(channels, solver):
    widths = [1, channels, channels, channels, 1]
    layers = [nn.Conv1d(a, b, 3, bias=False) for a, b in itertools.pairwise(widths)]
    model = seeded_module(nn.Sequential, *itertools.chain(*((layer, nn.ReLU()) for layer in layers[:-1])), layers[-1])
    weights = [m.weight.detach().numpy()[:, :, ::-1] for m in model if isinstance(m, nn.Conv1d)]
    allocation = capalloc.propagate(model, gaussian(1, 1, 9), gates="unit", solver=solver)
    np.testing.assert_allclose(allocation.capacity[0], convolution_closed_form(weights)[::-1], atol=1e-8)


@pytest.mark.proves("4", "residual networks", oracle="the Hessian identity")
@pytest.mark.parametrize(("channels", "blocks", "bound"), [(1, 8, 0.006), (4, 8, 0.0005)])
def test_residual_networks_stay_within_the_quoted_error_of_the_identity(channels, blocks, bound):
    model = seeded_module(Residual1d, channels, blocks)
    x = gaussian(1, 1, 2 * (2 * blocks + 1) + 1)
    markov, exact = (capalloc.propagate(model, x, gates="unit", solver=s, table=False) for s in SOLVERS)
    symmetries = channels * (blocks + 1)  # one a hidden channel, one a stream channel
    assert markov.total == pytest.approx(markov.attrs["num_params"] - symmetries)
    assert exact.total == pytest.approx(markov.total)
    assert capalloc.total_variation(markov, exact) <= bound


@pytest.mark.proves("4", "one symmetry a stream channel", oracle="the rank of the Hessian")
def test_residual_network_with_batch_norm_counts_its_symmetries():
    model, x = seeded_module(NormedResidual), gaussian(1, 1, 12)
    markov, exact = (capalloc.propagate(model, x, gates="unit", solver=s) for s in SOLVERS)
    assert markov.attrs["num_params"] == 77
    assert markov.total == pytest.approx(61)
    assert exact.attrs["rank"] == 61
    assert capalloc.total_variation(markov, exact) < 0.02


@pytest.mark.parametrize("solver", SOLVERS)
def test_data_gates_do_not_depend_on_batch_size(solver):
    model, x = dense(reference_weights()), gaussian(7, 3)
    whole, parts = (capalloc.propagate(model, x, solver=solver, batch_size=size) for size in (7, 3))
    np.testing.assert_allclose(whole.capacity, parts.capacity, atol=1e-10)
    np.testing.assert_allclose(whole.table, parts.table, atol=1e-10)
    np.testing.assert_allclose(whole.by_parameter, parts.by_parameter, atol=1e-10)


def test_automatic_batches_fit_the_memory(monkeypatch):
    from capalloc._energy import batches
    from capalloc._model.problem import prepare

    problem = prepare(dense(reference_weights()), gaussian(40, 3))
    assert batches.Batches.of(problem, "data", "auto", progress=False).graph.batch_size == 40
    monkeypatch.setattr(batches, "available_bytes", lambda _: 2 * 10 * batches.KEPT * 8 * (4 + 4 + 3 + 3 + 2))
    assert batches.Batches.of(problem, "data", "auto", progress=False).graph.batch_size == 10
    assert batches.Batches.of(problem, "data", 20, progress=False).graph.batch_size == 20


@pytest.mark.proves("4", "gates seen on examples", oracle="a network of three weights by hand")
def test_data_gates_are_the_mean_over_examples_of_path_energy():
    """A network of two inputs whose gates open on one example each: each weight's unit goes where its paths start."""
    model = dense([torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)])
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # the unit is dead on the second
    allocation = capalloc.propagate(model, x, solver="markov")
    np.testing.assert_allclose(allocation.capacity, [1, 1], atol=1e-12)
    dead = capalloc.propagate(model, x[:1].abs() * torch.tensor([1.0, 1.0]), gates="data", solver="markov")
    assert dead.total == pytest.approx(2)


@pytest.mark.proves("4", "unused parameters bring nothing", oracle="the rank of the Hessian")
def test_dead_units_bring_neither_capacity_nor_nan():
    weights = reference_weights()
    weights[0][1] = -weights[0][1].abs()  # never fires on positive inputs
    x = gaussian(5, 3).abs()
    model = dense(weights)
    markov, exact = (capalloc.propagate(model, x, solver=s) for s in SOLVERS)
    assert np.isfinite(markov.table).all()
    assert markov.attrs["unused_params"] >= 3 + 3  # what the unit reads and is read by
    assert markov.total == pytest.approx(exact.total, abs=1e-6)


def test_sixty_layers_give_the_map_of_their_rescaled_twin():
    """Path energies of 1e-960, where float64 ends at 1e-308."""
    weights = [torch.eye(3, dtype=torch.float64) + 0.3 * gaussian(3, 3, seed=k) for k in range(60)]
    plain = capalloc.propagate(dense(weights, nn.Identity), gaussian(1, 3), gates="unit", table=False, solver="markov")
    scaled = capalloc.propagate(
        dense([1e-8 * w for w in weights], nn.Identity), gaussian(1, 3), gates="unit", table=False, solver="markov"
    )
    np.testing.assert_allclose(plain.capacity, scaled.capacity, rtol=1e-9)
    assert plain.total == pytest.approx(9 * 60 - 3 * 59)


def test_float32_weights_of_1e_minus_30_keep_every_parameter():
    model = dense([1e-30 * w.float() for w in reference_weights()])
    allocation = capalloc.propagate(model, gaussian(1, 3).float(), gates="unit", solver="markov")
    np.testing.assert_allclose(allocation.capacity, REFERENCE_CAPACITY, rtol=1e-5)  # float32 weights


def test_an_example_that_rules_the_map_is_named():
    """Energies go with 1 / std^2: a token of next to constant features holds nearly all of them."""
    net = seeded_module(nn.Sequential, nn.LayerNorm(4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = gaussian(6, 4)
    plain = capalloc.propagate(net, x, solver="markov")
    x[2] = 1.0 + 0.01 * x[2]
    ruled = capalloc.propagate(net, x, solver="markov", batch_size=4)
    assert not any("of the path energy" in note for note in plain.attrs["notes"])
    (note,) = (note for note in ruled.attrs["notes"] if "of the path energy" in note)
    assert note.startswith("example 2 holds ")
    assert "% of the path energy of all 6" in note


class NearlyClosed(nn.Module):
    """A gate of exp(logit) on the last of six units: closed as little as any other that is not 0."""

    def __init__(self, logit: float, constant: bool) -> None:
        super().__init__()
        self.a, self.b, self.constant = nn.Linear(4, 6), nn.Linear(6, 2), constant
        self.register_buffer("logits", torch.tensor([0.0, 0, 0, 0, 0, logit]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        # As a constant factor, or as the slope of an activation.
        return self.b(torch.tanh(h) * torch.sigmoid(self.logits) if self.constant else torch.sigmoid(h + self.logits))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("logit", [-43.0, -46.0, -60.0])
def test_float32_keeps_the_parameters_behind_a_nearly_closed_gate(logit: float, constant: bool):
    """Squares of 1e-20 and less leave float32's range, and so does one over them: float64 has the answer."""
    model, x = seeded_module(NearlyClosed, logit, constant).float(), gaussian(8, 4).float()
    narrow, wide = (
        capalloc.propagate(model, x, solver=capalloc.solvers.Markov(dtype)) for dtype in (torch.float32, torch.float64)
    )
    assert narrow.attrs["unused_params"] == wide.attrs["unused_params"] == 0
    assert narrow.attrs["symmetries"] == wide.attrs["symmetries"]
    np.testing.assert_allclose(narrow.capacity, wide.capacity, rtol=1e-5)


@pytest.mark.proves("4", "Dense layered networks", oracle="the recursion over layers in numpy")
def test_layers_hold_the_capacity_brought_by_the_parameters_above():
    weights = reference_weights()
    allocation = capalloc.propagate(dense(weights), gaussian(1, 3), gates="unit", layers=True, solver="markov")
    w1, w2, w3 = (w.numpy() ** 2 for w in weights)
    e1 = w1.sum(1)
    e2 = w2 @ e1
    second = np.full(3, 2.0) - 1  # fan-out 2, less the rescaling symmetry
    step = w2 * e1 / e2[:, None]
    np.testing.assert_allclose(allocation.layers["2"], second, atol=1e-12)
    np.testing.assert_allclose(allocation.layers["0"], 3 - 1 + second @ step, atol=1e-12)
    assert float(allocation.layers["0"].sum()) == pytest.approx(w3.size + w2.size - 3 - 4)
    step = w1 / e1[:, None]
    np.testing.assert_allclose(allocation.capacity, 4 + allocation.layers["0"].values @ step, atol=1e-12)


@pytest.mark.proves("4", "P(k given j) of the Markov chain", oracle="squared weights times arriving energy in numpy")
def test_walk_is_the_law_of_the_markov_chain():
    weights = reference_weights()
    law = capalloc.walk(dense(weights), gaussian(1, 3), outputs=lambda y: y[:, :1], gates="unit")
    w1, w2, w3 = (w.numpy() ** 2 for w in weights)
    e1 = w1.sum(1)
    e2 = w2 @ e1
    at2 = w3[0] * e2 / (w3[0] @ e2)
    at1 = at2 @ (w2 * e1 / e2[:, None])
    np.testing.assert_allclose(law.layers["2"], at2, atol=1e-12)
    np.testing.assert_allclose(law.layers["0"], at1, atol=1e-12)
    np.testing.assert_allclose(law.inputs, at1 @ (w1 / e1[:, None]), atol=1e-12)
    assert law.bias == 0
    assert float(law.inputs.sum()) == pytest.approx(1)


def test_walk_ends_at_the_constant_where_biases_do():
    model = seeded_module(nn.Sequential, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    law = capalloc.walk(model, gaussian(6, 3), batch_size=4)
    assert law.bias > 0
    assert float(law.inputs.sum()) + law.bias == pytest.approx(1)


def test_marginals_of_the_table():
    model = seeded_module(NormedResidual)
    allocation = capalloc.propagate(model, gaussian(4, 1, 12), solver="markov")
    table = allocation.table
    np.testing.assert_allclose(table.sum("parameter"), allocation.capacity, atol=1e-10)
    inner = [d for d in table.dims if d != "parameter"]
    np.testing.assert_allclose(table.sum(inner) + table.bias, allocation.by_parameter, atol=1e-10)
    assert float(table.bias.sum()) == pytest.approx(allocation.bias)
    assert allocation.total == pytest.approx(float(allocation.by_parameter.sum()))


def test_fixed_parameters_bring_nothing_and_break_symmetries():
    model, x = dense(reference_weights()), gaussian(1, 3)
    middle, exact = (capalloc.propagate(model, x, gates="unit", solver=s, params=["2.weight"]) for s in SOLVERS)
    assert list(middle.by_parameter.parameter.values) == ["2.weight"]
    assert middle.total == pytest.approx(12)  # nothing can absorb a rescaling
    assert exact.total == pytest.approx(12)
    outer, exact = (
        capalloc.propagate(model, x, gates="unit", solver=s, params=lambda n: n != "2.weight") for s in SOLVERS
    )
    # Only one rescaling of the whole first layer against the whole last one is left.
    assert outer.total == pytest.approx(18 - 1)
    assert exact.total == pytest.approx(18 - 1)


@pytest.mark.proves("4", "any weight sharing", oracle="the Hessian identity")
def test_tied_weights_share_their_unit_over_their_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(torch.relu(self.inner(x)))))

    model, x = seeded_module(Twice), gaussian(1, 3)
    markov, exact = (capalloc.propagate(model, x, gates="unit", solver=s) for s in SOLVERS)
    assert markov.total == pytest.approx(exact.total)
    assert capalloc.total_variation(markov, exact) < 0.05


def test_the_model_is_left_as_it_was():
    model = seeded_module(NormedResidual).train()
    calls = []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = len(model.stem._forward_hooks)
    state = torch.random.get_rng_state()
    capalloc.propagate(model, gaussian(2, 1, 12), solver="markov")
    with pytest.raises(ValueError, match="gates must be one of"):
        capalloc.propagate(model, gaussian(2, 1, 12), gates="wrong", solver="markov")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(model.stem._forward_hooks) == hooks
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])


def test_bad_arguments_say_what_to_do():
    model, x = dense(reference_weights()), gaussian(2, 3)
    with pytest.raises(ValueError, match="solver must be one of"):
        capalloc.propagate(model, x, solver="dijkstra")
    with pytest.raises(ValueError, match="solver must be one of"):
        capalloc.propagate(model, x, solver=np.array(["auto", "block"]))
    with pytest.raises(ValueError, match="batch_size must be"):
        capalloc.propagate(model, x, batch_size=0, solver="markov")
    with pytest.raises(ValueError, match=r"Use solver=.markov."):
        capalloc.propagate(seeded_module(nn.Linear, 100, 30), gaussian(1, 100), solver="hessian")


def test_a_model_that_export_refuses_is_a_clear_error():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.a(-x)

    with pytest.raises(ValueError, match=r"torch.export cannot capture this model.*measure\(\) does not"):
        capalloc.propagate(Branching().double(), gaussian(2, 3), solver="markov")


def test_outputs_without_energy_have_no_capacity():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2, dtype=torch.float64)

        def forward(self, x):
            return self.a(x.detach() * 0 + 1) + 0 * x[:, :2]

    allocation = capalloc.propagate(Rounded(), gaussian(2, 3), solver="markov")
    assert float(allocation.capacity.sum()) == pytest.approx(0)


@pytest.mark.parametrize("solver", ["markov", "hessian"])
def test_a_model_that_computes_nothing_has_no_capacity(solver):
    class Unused(nn.Linear):
        def forward(self, x):
            return x

    found = capalloc.propagate(seeded_module(Unused, 3, 2), gaussian(2, 3), solver=solver)
    assert found.total == 0
    assert found.attrs["unused_params"] == 8


def test_the_hessian_identity_takes_output_padding():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 1, 3, 2, (1, 0), output_padding=1)
    ).double()
    markov, hessian = (capalloc.propagate(model, gaussian(4, 1, 6, 6), solver=solver) for solver in SOLVERS)
    assert hessian.total == pytest.approx(markov.total)


def test_a_parameter_without_entries_changes_nothing():
    class Registers(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
            self.registers = nn.Parameter(torch.zeros(1, 0, 4))

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).mean(1))

    class Always(Registers):
        def forward(self, x):
            return self.b(torch.relu(self.a(torch.cat([self.registers.expand(len(x), -1, -1), x], 1))).mean(1))

    x = gaussian(3, 5, 4)
    found, plain = (capalloc.propagate(kind().double(), x, solver="markov") for kind in (Always, Registers))
    np.testing.assert_allclose(found.capacity, plain.capacity)


def test_outputs_that_are_not_numbers_are_an_error():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return torch.sqrt(self.layer(x))

    model = Root()
    nn.init.eye_(model.layer.weight)
    program = torch.export.export(model.eval(), (torch.ones(2, 2),), strict=False)
    with pytest.raises(ValueError, match="outputs hold NaN"):
        capalloc.propagate(program, -torch.ones(2, 2), solver="markov")


@pytest.mark.parametrize(("table", "there"), [("auto", False), (True, True)])
def test_a_table_beyond_the_limit_is_made_where_asked_for(table, there):
    problem = prepare(nn.Linear(3, 2), torch.ones(4, 3), None, None, traced=True)
    found = by_markov(problem, Batches.of(problem, "unit", "auto"), layers=False, table=table, table_limit=0)
    assert (found.table is not None) == there


@pytest.mark.parametrize("solver", ["auto", capalloc.solvers.Block(2, num_probes=4)])
def test_a_total_that_the_examples_limit_says_so(solver):
    """Six rows an example, all independent: 24 of four examples, and 12 of the first two, for 43 parameters."""
    model, x = seeded_module(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))), gaussian(4, 5)
    found = capalloc.propagate(model, x, solver=solver)
    assert found.total == pytest.approx(24)
    assert "24 rows of constraints for 43 parameters: limited by the data" in found.attrs["notes"]
    assert found.attrs["limited_by_data"]
    half = capalloc.propagate(model, x[:2], solver=solver)
    assert (found.attrs["half_examples"], found.attrs["half_total"]) == (2, pytest.approx(half.total))
    many = capalloc.propagate(model, gaussian(40, 5), solver=solver)
    assert "limited_by_data" not in many.attrs


@pytest.mark.parametrize(("batch_size", "advice"), [("auto", "take smaller inputs"), (3, "lower batch_size")])
def test_a_walk_that_does_not_fit_is_refused_beforehand(monkeypatch, batch_size, advice):
    """Energies of 4 + 4 + 3 + 3 + 2 numbers or so an example, of which seventy bytes hold none."""
    monkeypatch.setattr("capalloc._energy.batches.budget_of", lambda device: Budget(70))
    net, x = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(5, 3)
    for ask in (capalloc.propagate, capalloc.walk):
        keywords = {"solver": "markov"} if ask is capalloc.propagate else {}
        with pytest.raises(MemoryError, match=rf"path energies of .* may be used; {advice}"):
            ask(net, x, batch_size=batch_size, **keywords)


def test_steps_have_the_memory_that_is_left(monkeypatch):
    """Of the blocks' own memory nothing is left here; four steps are asked for."""
    monkeypatch.setattr("capalloc._propagate.by_constraints.budget_of", lambda device: Budget(1000))
    net, x = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(9, 3)
    with pytest.raises(MemoryError, match=r"4 steps of .* probes of 242 parameters needs"):
        capalloc.propagate(net, x, solver=capalloc.solvers.Block(num_steps=4))
