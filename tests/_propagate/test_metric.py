"""One metric for all methods: the data's, with the constant at the data's mean (docs/theory.md, section 2)."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from architectures import ViT
from capalloc._energy.batches import Batches
from capalloc._model.input_metric import input_metric
from capalloc._model.problem import prepare
from capalloc._settings import Dense
from reference import by_tensor, capacity_table, constraints
from zoo import gaussian, seeded_module

WORDS = ["variance", "covariance"]
PROPAGATED = ["markov", "segments", "hessian"]


class Before(nn.Module):
    """A fixed affine map z -> mu + A z, then a model."""

    def __init__(self, model: nn.Module, center: Tensor, root: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("center", center)
        self.register_buffer("root", root)

    def forward(self, z: Tensor) -> Tensor:
        return self.model(self.center + (z.flatten(1) @ self.root.T).reshape(z.shape))


class Normalised(nn.Module):
    """A fixed normalisation (x - m) / d, then a model."""

    def __init__(self, model: nn.Module, m: Tensor, d: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("m", m)
        self.register_buffer("d", d)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.m) / self.d)


class Recurrent(nn.Module):
    """h <- tanh(V x_t + a + U h + b), whose biases start at 0, as they do in torch's own initialisation of many."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.carry, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.read.bias)
        nn.init.zeros_(self.carry.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.carry(h))
        return self.head(h)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


def bottleneck() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def unbiased() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))


def convolutions() -> nn.Sequential:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layers = [nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def first_layer(model: nn.Module) -> nn.Module:
    return next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))


# model, shape of an example, shape of scales and shifts
NETWORKS = {
    "dense": (mlp, (5,), (5,)),
    "linear bottleneck": (bottleneck, (5,), (5,)),
    "no biases": (unbiased, (5,), (5,)),
    "convolutions": (convolutions, (2, 6, 6), (2, 1, 1)),
    "vit": (ViT, (1, 8, 8), (1, 1, 1)),
    "recurrent": (Recurrent, (3, 2), (1, 2)),
}
#: The same network for solvers whose work grows with the square of the parameters.
NARROW = {"vit": (partial(ViT, width=4), *NETWORKS["vit"][1:])}


#: Every two of a network, a method and a metric meet; the Hessian identity refuses the covariance.
COVER = [
    case
    for k, name in enumerate(NETWORKS)
    for case in (
        (name, "measure", WORDS[k % 2]),
        (name, "markov", WORDS[1 - k % 2]),
        (name, "segments", WORDS[name in ("dense", "convolutions")]),
        (name, "hessian", "variance"),
    )
]


def data(shape: tuple[int, ...], number: int = 24) -> Tensor:
    """Correlated examples with means and deviations of their own."""
    z = gaussian(number, *shape, seed=3)
    z = z + 0.5 * z.roll(1, -1)
    return z * (0.5 + gaussian(*shape, seed=4).abs()) + 2 * gaussian(*shape, seed=5)


def network(name: str, narrow: bool = False) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, its examples, and scales and shifts of them."""
    build, shape, channels = NARROW.get(name, NETWORKS[name]) if narrow else NETWORKS[name]
    model = seeded_module(build).eval()
    return model, data(shape), 0.1 + 30 * gaussian(*channels, seed=6).abs(), 10 * gaussian(*channels, seed=7)


def matched(model: nn.Module, a: Tensor, s: Tensor) -> nn.Module:
    """The same function of a x + s: the first layer changed to match."""
    changed = copy.deepcopy(model)
    layer = first_layer(changed)
    weight = layer.weight.data
    columns = (1, -1, *[1] * (weight.ndim - 2))
    layer.weight.data = weight / a.reshape(columns)
    if layer.bias is None:
        changed = Normalised(model, s, a)  # a layer without a bias cannot undo a shift: the model normalises
    else:
        shift = layer.weight.data * s.reshape(columns)
        layer.bias.data -= shift.flatten(1).sum(1)
    return changed


def assert_same(found, expected, rtol: float = 1e-9) -> None:
    scale = expected.total
    np.testing.assert_allclose(found.capacity.values, expected.capacity.values, rtol=rtol, atol=rtol * scale)
    assert found.bias == pytest.approx(expected.bias, rel=rtol, abs=rtol * scale)
    assert found.total == pytest.approx(expected.total, rel=rtol)


def allocate(method: str, model: nn.Module, x: Tensor, metric) -> capalloc.Allocation:
    if method == "measure":
        return capalloc.measure(model, x, metric=metric)
    solver = capalloc.solvers.Segments(num_probes=3) if method == "segments" else method
    return capalloc.propagate(model, x, solver=solver, metric=metric)


@pytest.mark.proves(
    "2",
    "shifts, scales, normalisations",
    oracle="the same function of inputs shifted and scaled, and behind a fixed normalisation",
)
@pytest.mark.filterwarnings("ignore::capalloc.CapacityWarning")
@pytest.mark.parametrize(("name", "method", "metric"), COVER)
def test_shifts_scales_and_normalisations_change_nothing(name, method, metric):
    model, x, a, s = network(name, narrow=method != "measure")
    if name in ("vit", "convolutions"):
        x = x[:4]
    expected = allocate(method, model, x, metric)
    rtol = 1e-7 if method == "measure" else 1e-9  # rows in units of 1000, with a rank to be told
    for other in (matched(model, a, s), Normalised(model, s, a)):
        assert_same(allocate(method, other, x * a + s, metric), expected, rtol)


@pytest.mark.parametrize("metric", WORDS)
@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_the_law_of_the_walk_and_the_field_change_nothing_either(name, metric):
    model, x, a, s = network(name)
    walks = [capalloc.walk(m, y, metric=metric) for m, y in ((model, x), (matched(model, a, s), x * a + s))]
    np.testing.assert_allclose(walks[1].inputs, walks[0].inputs, rtol=1e-9)
    assert walks[1].bias == pytest.approx(walks[0].bias, rel=1e-9)
    assert walks[0].layers.keys() == walks[1].layers.keys()
    for layer, units in walks[0].layers.items():
        np.testing.assert_allclose(walks[1].layers[layer], units, rtol=1e-9, atol=1e-12)
    for of in ("energy", "capacity"):
        fields = [
            capalloc.receptive_field(m, y, of=of, metric=metric).map
            for m, y in ((model, x), (Normalised(model, s, a), x * a + s))
        ]
        np.testing.assert_allclose(fields[1], fields[0], rtol=1e-9)


@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_scaling_and_diagnose_do_not_see_units(name):
    model, x, a, s = network(name)
    for method in (capalloc.scaling, lambda *args, **kw: capalloc.diagnose(*args, num_examples=3, **kw).scaling):
        one, other = (method(m, y, metric="variance").data for m, y in ((model, x), (matched(model, a, s), x * a + s)))
        np.testing.assert_allclose(other["gain"][1:], one["gain"][1:], rtol=1e-9)  # the first is from inputs to units
        np.testing.assert_allclose(other["mean_squared_gate"], one["mean_squared_gate"], rtol=1e-9)
        assert one.attrs["metric"] == "variance"


@pytest.mark.proves("2", "f = grad f . (x - mu) + b(x): rows of z in x = mu + A z", oracle="the map before the model")
@pytest.mark.parametrize("metric", [*WORDS, "tensor"])
def test_measured_is_the_model_behind_the_affine_map(metric):
    model, x = seeded_module(mlp), data((5,), 12)
    given = torch.diag(torch.arange(1.0, 6.0)).double() + 0.3 if metric == "tensor" else metric
    space = input_metric(given, prepare(model, x, dtype=torch.float64))
    root = space.root.diag() if space.root.ndim == 1 else space.root
    z = torch.linalg.solve(root, (x - x.mean(0)).T).T
    C = constraints(Before(model, x.mean(0), root), z)
    found = capalloc.measure(model, x, metric=given, ridge=1e-3, solver=Dense(coordinates="plain"))
    expected = by_tensor(capacity_table(C, 1e-3), model)
    np.testing.assert_allclose(found.table.values, expected[:, :-1], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.table["bias"].values, expected[:, -1], rtol=1e-6, atol=1e-8)
    assert found.attrs["metric"] == metric


@pytest.mark.proves(
    "2",
    "path energies of a dense first layer: (W A)_ji^2 and (W mu + b)_j^2",
    oracle="the first layer folded: W A and W mu + b, identity metric",
)
@pytest.mark.parametrize("metric", WORDS)
@pytest.mark.parametrize("solver", PROPAGATED)
def test_propagated_is_the_model_with_the_affine_map_folded_in(solver, metric):
    if (solver, metric) == ("hessian", "covariance"):
        pytest.skip("refused, see below")
    model, x = seeded_module(mlp), data((5,))
    space = input_metric(metric, prepare(model, x))
    root = space.root.diag() if space.root.ndim == 1 else space.root
    folded = copy.deepcopy(model)
    folded[0].weight.data = model[0].weight.data @ root
    folded[0].bias.data = model[0](x.mean(0)).detach()
    z = torch.linalg.solve(root, (x - x.mean(0)).T).T
    found, expected = allocate(solver, model, x, metric), allocate(solver, folded, z, "identity")
    assert_same(found, expected)
    if solver != "segments":  # whose parts by parameter are those of one parametrisation
        np.testing.assert_allclose(found.by_parameter, expected.by_parameter, rtol=1e-9)
    if solver == "markov":
        np.testing.assert_allclose(found.table, expected.table, rtol=1e-9, atol=1e-12)
        one, other = (
            capalloc.propagate(m, y, metric=w, layers=True).layers
            for m, y, w in ((model, x, metric), (folded, z, "identity"))
        )
        for layer, units in other.items():
            np.testing.assert_allclose(one[layer], units, rtol=1e-9)


@pytest.mark.proves(
    "2",
    "the constant's energy is (the value at x = mu)^2 while no gate was met",
    oracle="the network run at the mean",
)
@pytest.mark.parametrize("metric", WORDS)
@pytest.mark.parametrize("name", ["linear bottleneck", "convolutions", "no biases"])
def test_the_constant_is_coherent_before_the_first_gate(name, metric):
    model, x, *_ = network(name)
    until = next(k for k, layer in enumerate(model) if isinstance(layer, nn.ReLU))
    stretch = model[:until]
    at_mean = stretch(x.mean(0, keepdim=True)).detach().square().sum()
    problem = prepare(stretch, x)
    space = input_metric(metric, problem)
    directions = space.columns(0, space.num_inputs)
    moved = stretch(x.mean(0) + directions) - stretch(x.mean(0, keepdim=True))
    law = capalloc.walk(stretch, x, metric=metric)
    if name != "linear bottleneck":  # one map with weights, or one and a fixed scale by channel
        energy = moved.detach().square().flatten(1).sum(1)
        np.testing.assert_allclose(law.inputs.values.reshape(-1), energy / (energy.sum() + at_mean), rtol=1e-9)
        assert law.bias == pytest.approx(float(at_mean / (energy.sum() + at_mean)), rel=1e-9)
    else:
        first = (model[0].weight @ (space.root.diag() if space.root.ndim == 1 else space.root)).square()
        energy = (model[1].weight.square() @ first).sum(0).detach()
        assert law.bias == pytest.approx(float(at_mean / (energy.sum() + at_mean)), rel=1e-9)


@pytest.mark.parametrize("metric", WORDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_metric_changes_no_total_and_capacity_stays_whole(name, metric):
    """Every parameter and every symmetry counts as before; biases of 0 count too, since they stand for a mean."""
    model, x, *_ = network(name)
    plain, found = (capalloc.propagate(model, x, metric=m, table=True) for m in (None, metric))
    assert found.attrs["symmetries"] == plain.attrs["symmetries"]
    assert found.attrs["symmetries_exact"] == plain.attrs["symmetries_exact"]
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert found.attrs["unused_params"] <= plain.attrs["unused_params"]
    assert plain.attrs["unused_params"] - found.attrs["unused_params"] in (0, zeros // 2, zeros)
    counted = found.attrs["num_params"] - found.attrs["unused_params"] - found.attrs["unseen_params"]
    assert found.total == pytest.approx(counted - found.attrs["symmetries"], rel=1e-9)
    assert float(found.capacity.sum()) + found.bias == pytest.approx(found.total, rel=1e-9)


def test_every_whitened_input_of_a_dense_layer_holds_one_unit_a_row():
    """W A is as free as W: a linear model's map is flat, whatever the covariance."""
    x = data((5,))
    for method in ("measure", "markov"):
        found = allocate(method, seeded_module(nn.Linear, 5, 3), x, "covariance")
        np.testing.assert_allclose(found.capacity, 3, rtol=1e-9)
        assert found.bias == pytest.approx(3, rel=1e-9)


def test_inputs_that_never_vary_hold_nothing_and_are_named_where_they_do():
    model, x = seeded_module(mlp), data((5,))
    x[:, 1] = 3.0
    x[:, 4] = 0.0
    for method in ("measure", "markov"):
        plain, found = (allocate(method, model, x, metric) for metric in (None, "variance"))
        (note,) = [note for note in plain.attrs["notes"] if "never vary" in note]
        assert "2 inputs never vary" in note
        assert "1, 4;" in note
        assert plain.attrs["metric"] == "identity"
        assert not any("never var" in note for note in found.attrs["notes"])
        np.testing.assert_allclose(found.capacity[[1, 4]], 0, atol=1e-9)


def test_one_example_says_nothing_of_still_inputs():
    notes = allocate("markov", seeded_module(mlp), data((5,), 1), None).attrs["notes"]
    assert not any("never var" in note for note in notes)


def test_block_takes_the_metric():
    """Behind a normalisation its draws are the same; a covariance turns the rows sampled, within their error."""
    model, x, a, s = network("convolutions")
    solver = capalloc.solvers.Block(num_steps=6, num_probes=8)
    for metric in WORDS:
        expected = capalloc.propagate(model, x, solver=solver, metric=metric)
        found = capalloc.propagate(Normalised(model, s, a), x * a + s, solver=solver, metric=metric)
        assert_same(found, expected, rtol=1e-9 if metric == "variance" else 2e-2)
        assert found.attrs["metric"] == metric


def test_batches_share_one_mean():
    model, x, *_ = network("dense")
    expected = allocate("markov", model, x, "covariance")
    assert_same(capalloc.propagate(model, x.split(5), solver="markov", metric="covariance", batch_size=7), expected)
    expected = capalloc.measure(model, x, metric="covariance")
    assert_same(capalloc.measure(model, x.split(5), metric="covariance", batch_size=7), expected)


def test_a_tensor_is_taken_about_the_mean_of_the_data():
    model, x, *_ = network("dense")
    for method in ("markov", "measure"):
        assert_same(allocate(method, model, x, x.var(0, correction=0)), allocate(method, model, x, "variance"))


def test_gates_of_theory_take_the_metric():
    model, x, a, s = network("dense")
    expected = capalloc.propagate(model, x, gates="gaussian", metric="variance")
    assert_same(capalloc.propagate(matched(model, a, s), x * a + s, gates="gaussian", metric="variance"), expected)


def test_coupled_decoupling_weighs_first_layers_by_the_metric():
    """sum d c^2 / sum c^2 with c the correlations of what the units read, W S W'."""
    model, x = seeded_module(unbiased), data((5,), 200)
    found = capalloc.decoupling(model, x, metric="variance")
    rows = model[0].weight.detach() * x.std(0, correction=0)
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (rows / rows.norm(dim=1, keepdim=True)).T
    open_ = (x @ model[0].weight.detach().T > 0).double()
    A = open_.T @ open_ / len(x)
    d = 1 - A / (A.diagonal()[:, None] * A.diagonal()).sqrt()
    i, j = torch.triu_indices(6, 6, 1)
    alive = ~d[i, j].isnan()
    weight = cosines[i, j].square()[alive]
    expected = float((d[i, j][alive] * weight).sum() / weight.sum())
    assert float(found.data["coupled_decoupling"][0]) == pytest.approx(expected, rel=1e-9)
    assert found.data.attrs["metric"] == "variance"
    plain = capalloc.decoupling(model, x)
    assert float(plain.data["decoupling"][0]) == float(found.data["decoupling"][0])
    assert float(plain.data["coupled_decoupling"][0]) != pytest.approx(expected)


def test_first_layers_of_too_many_inputs_are_weighed_by_their_weights(monkeypatch):
    monkeypatch.setattr("capalloc._decoupling.coupling.MOST_DIRECTIONS", 4)
    model, x = seeded_module(unbiased), data((5,))
    found, plain = (capalloc.decoupling(model, x, metric=metric) for metric in ("variance", "identity"))
    assert float(found.data["coupled_decoupling"][0]) == float(plain.data["coupled_decoupling"][0])
    assert "5 inputs are too many" in found.data.attrs["notes"][0]


class Averaged(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.avg_pool1d(x[:, None], 3, 1)[:, 0])


class Scales(nn.Module):
    """Two parameters in one product, which the rule takes as two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(gaussian(5, seed=8)), nn.Parameter(gaussian(5, seed=9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * (self.a * self.b))


@pytest.mark.parametrize(
    ("model", "solver", "match"),
    [
        (mlp(), "hessian", "solver='hessian' takes path energies as polynomials"),
        (Averaged(nn.Linear(3, 2)), "markov", "reads the inputs as they are"),
        (Scales(), "markov", "takes no first layer of several maps"),
    ],
)
def test_covariances_that_path_energy_cannot_take_are_refused(model, solver, match):
    with pytest.raises(ValueError, match=match):
        capalloc.propagate(model.double(), data((5,)), solver=solver, metric="covariance")


def test_a_first_layer_too_large_for_covariances_is_refused(monkeypatch):
    monkeypatch.setattr("capalloc._energy.mixed_inputs.MOST_ENTRIES", 20)
    with pytest.raises(ValueError, match="takes the first layer as one map of 6 units x 5 inputs, more than 20"):
        capalloc.propagate(seeded_module(mlp), data((5,)), solver="markov", metric="covariance")


def test_a_gate_on_raw_inputs_reads_them_whole():
    """Energies A_ki^2 of z_i at x_k, and mu_k^2 of the constant."""
    x = data((5,))
    model = nn.Sequential(nn.Sigmoid(), nn.Linear(5, 1)).double()
    space = input_metric("covariance", prepare(model, x))
    slope = torch.sigmoid(x) * (1 - torch.sigmoid(x))
    passed = (slope * model[1].weight.detach()[0]).square().mean(0)
    energy = (passed[:, None] * space.root.square()).sum(0)
    constant = (passed * x.mean(0).square()).sum() + model[1].bias.detach().square().sum()
    law = capalloc.walk(model, x, metric="covariance")
    np.testing.assert_allclose(law.inputs, energy / (energy.sum() + constant), rtol=1e-9)


def test_the_default_starts_as_it_did():
    """Without a metric nothing is known of a mean: a program starts with energy 1 at every input."""
    problem = prepare(seeded_module(mlp), data((5,)))
    batches = Batches.of(problem, "data", "auto", metric=input_metric(None, problem))
    ((program, _),) = batches()
    assert bool((program.values[program.input] == 1).all())
    assert batches.start.stretch is None
