"""`shattering`: gradients against plain autograd, the prediction against an explicit sum over paths, and theory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from torch import Tensor, nn

import capalloc
from architectures import ARCHITECTURES
from capalloc._depth.points import Pairs, correlation, error, examples_and_neighbours, lags, line
from zoo import gaussian, seeded_module


class Residual(nn.Module):
    """Blocks h + sqrt(rate) W relu(h), and a linear read-out of one output."""

    def __init__(self, width: int, depth: int, rate: float, outputs: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, outputs, bias=False)
        self.rate = rate
        for block in self.blocks:
            nn.init.normal_(block.weight, std=math.sqrt(2 / width))

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = h + self.rate**0.5 * block(torch.relu(h))
        return self.head(h)


def cosines(gradients: Tensor) -> float:
    """sum <g, g'> / sum |g| |g'| over pairs of different examples, (examples, units)."""
    pairs = list(itertools.combinations(gradients.detach(), 2))
    return float(sum(a @ b for a, b in pairs) / sum(a.norm() * b.norm() for a, b in pairs))


# -- points ---------------------------------------------------------------------------------------------------------


def test_neighbours_lie_a_step_towards_the_next_example():
    x = gaussian(3, 2)
    points, apart, near = examples_and_neighbours(x, 0.25)
    torch.testing.assert_close(points[3:], 0.75 * x + 0.25 * x[[1, 2, 0]])
    assert apart.index.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert near.index.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert near.groups.tolist() == [[0, 1], [1, 2], [2, 0]]


def test_lines_go_in_equal_steps_and_lags_pair_every_distance():
    start, stop = gaussian(2, 3)
    points = line(start, stop, 5)
    torch.testing.assert_close(points[0], start)
    torch.testing.assert_close(points[-1], stop)
    torch.testing.assert_close(points.diff(dim=0), ((stop - start) / 4).expand(4, 3))
    assert [len(index) for index in lags(5)] == [4, 3, 2, 1]
    assert all((index[:, 1] - index[:, 0] == k + 1).all() for k, index in enumerate(lags(5)))


def test_correlation_and_its_jackknife_against_loops():
    g = gaussian(5, 7)
    _, apart, _ = examples_and_neighbours(g, 0.1)
    gram = g @ g.T
    assert float(correlation(gram, apart.index)) == pytest.approx(cosines(g), abs=1e-12)
    left_out = torch.tensor([cosines(g[[k for k in range(5) if k != out]]) for out in range(5)])
    expected = math.sqrt(4 * float(left_out.var(correction=0)))
    assert float(error(gram, apart)) == pytest.approx(expected, abs=1e-6)


def test_error_of_too_few_examples_is_unknown():
    _, apart, near = examples_and_neighbours(gaussian(2, 3), 0.1)
    gram = torch.eye(4, dtype=torch.float64)
    assert error(gram, apart).isnan()
    assert error(gram, Pairs(near.index, near.groups)).isnan()


# -- measured -------------------------------------------------------------------------------------------------------


@pytest.mark.proves("6", "the value at a layer is the correlation of the gradients there", oracle="autograd")
def test_gradients_are_those_of_autograd_everywhere():
    model = seeded_module(nn.Sequential, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))
    x = gaussian(6, 6)
    found = capalloc.shattering(model, x, num_examples=6).data
    values = [x.clone().requires_grad_()]
    for layer in model:
        values.append(layer(values[-1]))
    at = dict(zip(found["place"].to_numpy(), found["measured_independent"].to_numpy(), strict=True))
    assert list(at) == ["inputs", "1 (relu)", "3 (tanh)"]
    for name, k in zip(at, (0, 1, 3), strict=True):
        (gradient,) = torch.autograd.grad(values[-1].sum(), values[k], retain_graph=True)
        assert at[name] == pytest.approx(cosines(gradient), abs=1e-9)


def test_probes_of_several_outputs_converge_to_the_whole_jacobian():
    model = seeded_module(nn.Sequential, nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = gaussian(5, 6)
    jacobian = torch.func.vmap(torch.func.jacrev(model))(x).flatten(1)
    found = capalloc.shattering(model, x, num_probes=4000, num_lines=1).data["measured_independent"]
    assert float(found[0]) == pytest.approx(cosines(jacobian), abs=0.03)  # 4000 probes: a standard error below 0.01


def test_lines_share_the_probes_of_several_outputs():
    model = seeded_module(nn.Sequential, nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = gaussian(4, 6)
    on_lines = [line(x[k], x[k + 1], 8) for k in range(2)]
    whole = [torch.func.vmap(torch.func.jacrev(model))(points).flatten(1) for points in on_lines]
    expected = np.mean([[float(correlation(g @ g.T, index)) for index in lags(8)] for g in whole], 0)
    found = capalloc.shattering(model, x, num_probes=8000, num_lines=2).data["measured_line"]
    np.testing.assert_allclose(found, expected, atol=0.03)  # 4000 probes a line, as above


def test_a_line_is_measured_by_the_same_gradients():
    model = seeded_module(nn.Sequential, nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    x = gaussian(3, 4)
    found = capalloc.shattering(model, x, num_lines=3).data
    expected = []
    for k in range(3):
        points = line(x[k], x[(k + 1) % 3], 6).requires_grad_()
        (g,) = torch.autograd.grad(model(points).sum(), points)
        expected.append([float(correlation(g @ g.T, index)) for index in lags(6)])
    np.testing.assert_allclose(found["measured_line"], np.mean(expected, 0), atol=1e-9)
    np.testing.assert_allclose(found["measured_line_error"], np.std(expected, 0, ddof=1) / math.sqrt(3), atol=1e-9)
    np.testing.assert_allclose(found["distance"], np.arange(1, 6) / 5)


# -- predicted ------------------------------------------------------------------------------------------------------


def test_a_linear_model_has_one_gradient():
    model = seeded_module(nn.Sequential, nn.Linear(5, 4), nn.Linear(4, 2))
    result = capalloc.shattering(model, gaussian(4, 5))
    assert result.index == 0
    assert result.data.sizes["gate"] == 0
    for name in ("measured_independent", "measured_nearby", "predicted_independent", "predicted_nearby"):
        np.testing.assert_allclose(result.data[name], 1, atol=1e-12)


@pytest.mark.proves("6", "the path average is one backward sweep", oracle="every path of a residual network")
def test_prediction_is_the_path_average_of_gate_correlations():
    """Every path of a residual network one by one: squared weights and gates, times the correlations it meets."""
    width, depth = 4, 3
    model = seeded_module(Residual, width, depth, 0.7)
    x = gaussian(5, width)
    result = capalloc.shattering(model, x, num_examples=5)
    kept = 1 - result.data["decoupling"].to_numpy()
    plain = damped = 0.0
    crossings = np.zeros(depth)
    for point in x:
        h, gates = point, []
        for block in model.blocks:
            gates.append((h > 0).double())
            h = h + model.rate**0.5 * block(torch.relu(h))
        for units in itertools.product(range(width), repeat=depth + 1):
            for taken in itertools.product([False, True], repeat=depth):  # by block: the branch, or the skip
                weight = float(model.head.weight[0, units[-1]]) ** 2
                for k in range(depth):
                    below, above = units[k], units[k + 1]
                    if taken[k]:
                        through = model.rate * float(model.blocks[k].weight[above, below]) ** 2
                        weight *= through * float(gates[k][below])
                    else:
                        weight *= below == above
                if weight:
                    plain += weight
                    damped += weight * math.prod(c for c, t in zip(kept, taken, strict=True) if t)
                    crossings += weight * np.array(taken)
    assert result.correlation == pytest.approx(damped / plain, rel=1e-9)
    np.testing.assert_allclose(result.data["crossing"], crossings / plain, rtol=1e-9)
    assert result.index == pytest.approx(float(((1 - kept) * crossings / plain).sum()), rel=1e-9)


@pytest.mark.proves("6", "the path average is one backward sweep", oracle="autograd on random networks")
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_wide_networks_shatter_as_predicted(rate):
    """Mean over networks: measured and predicted agree within their errors, which the choice of weights dominates."""
    differences = []
    for seed in range(8):
        model = seeded_module(Residual, 128, 8, rate, seed=seed)
        found = capalloc.shattering(model, gaussian(6, 128, seed=seed), num_examples=6, num_lines=1).data
        differences.append((found["measured_independent"] - found["predicted_independent"]).to_numpy())
    mean, spread = np.mean(differences, 0), np.std(differences, 0, ddof=1) / math.sqrt(len(differences))
    assert (np.abs(mean) < 4 * spread + 0.01).all(), (mean, spread)
    assert spread.max() < 0.05


def test_opposite_slopes_cancel():
    """Slopes of |z| are signs: at x and -x they are opposite, and so are the gradients of one layer."""

    class Absolute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 64, bias=False), nn.Linear(64, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x).abs())

    x = gaussian(1, 4)
    found = capalloc.shattering(seeded_module(Absolute), torch.cat([x, -x]), step=1.0).data
    for name in ("measured_independent", "predicted_independent", "measured_nearby", "predicted_nearby"):
        assert float(found[name][0]) == pytest.approx(-1, abs=1e-9)
    assert float(found["decoupling"][0]) == pytest.approx(0, abs=1e-9)  # opposite is coupled


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name):
    architecture = ARCHITECTURES[name]
    result = capalloc.shattering(architecture.build(), gaussian(4, *architecture.shape), num_lines=1, num_probes=2)
    data = result.data
    assert data.sizes["gate"] > 0
    assert data["place"].to_numpy()[0] == "inputs"
    for variable in ("measured_independent", "measured_nearby", "predicted_independent", "measured_line"):
        assert (np.abs(data[variable].fillna(0)) <= 1 + 1e-9).all()  # NaN where no gradient comes
    assert (data["crossing"] <= 1 + 1e-9).all()
    assert 0 <= result.index < data.sizes["gate"]
    assert len(set(data["gate"].to_numpy())) == data.sizes["gate"]
    assert len(set(data["place"].to_numpy())) == data.sizes["place"]


# -- the function -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> capalloc.results.Shattering:
    return capalloc.shattering(seeded_module(Residual, 8, 3, 1.0), gaussian(4, 8))


def test_model_and_random_state_are_left_alone():
    model = seeded_module(Residual, 8, 2, 1.0).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first = capalloc.shattering(model, gaussian(4, 8))
    second = capalloc.shattering(model, gaussian(4, 8))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    xr.testing.assert_equal(first.data, second.data)


def test_streams_are_places_of_their_own(small):
    assert small.data["kind"].to_numpy().tolist() == ["inputs", "stream", "stream", "stream"]
    assert small.data["place"].to_numpy().tolist() == ["inputs", "blocks.0", "blocks.1", "blocks.2"]
    assert float(small.data["measured_independent"][-1]) == pytest.approx(1)  # above the last gate: one gradient


def test_a_shattered_network_is_advised_on(small):
    """lambda = 1 keeps 0.002 of the correlation through 64 blocks; three blocks keep plenty."""
    advice = capalloc.shattering(seeded_module(Residual, 64, 64, 1.0), gaussian(6, 64), num_lines=1).advice
    assert "decouplings on a path, most at relu" in advice[0]
    assert small.advice == []


def test_saved_and_loaded(small, tmp_path):
    small.save(tmp_path / "s.nc")
    loaded = capalloc.results.Shattering.load(tmp_path / "s.nc")
    xr.testing.assert_identical(loaded.data, small.data)
    assert loaded.index == small.index
    (tmp_path / "bad.nc").write_bytes(b"no file")
    with pytest.raises(ValueError, match="damaged or no NetCDF"):
        capalloc.results.Shattering.load(tmp_path / "bad.nc")
    with pytest.raises(ValueError, match="not a capalloc-scaling"):
        capalloc.results.Scaling.load(tmp_path / "s.nc")


def test_shown_as_text_table_and_pictures(small):
    assert "<capalloc.Shattering, index" in repr(small)
    assert small.to_pandas().shape == (4, 7)
    named = small.data.assign_coords(gate=["<b>", *small.data["gate"].to_numpy()[1:]])
    assert "&lt;b&gt;" in capalloc.results.Shattering(named)._repr_html_()
    assert small.plot().get_ylabel() == "correlation of gradients"
    assert len(small.plot_line().lines) > 0


def test_invariants_are_checked(small):
    with pytest.raises(ValueError, match=r"lacks \['crossing'\]"):
        capalloc.results.Shattering(small.data.drop_vars("crossing"))
    with pytest.raises(ValueError, match="crossing must not be negative"):
        capalloc.results.Shattering(small.data.assign(crossing=-small.data["crossing"] - 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_examples": 1}, "num_examples must be an integer of at least 2"),
        ({"num_lines": 0}, "num_lines must be an integer of at least 1"),
        ({"num_probes": 0}, "num_probes must be an integer of at least 1"),
        ({"step": 0.0}, r"step must be a share of the way between two examples, in \(0, 1\]"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        capalloc.shattering(nn.Linear(3, 1), torch.randn(4, 3), **settings)


def test_one_example_is_too_few():
    with pytest.raises(ValueError, match="inputs hold 1 example"):
        capalloc.shattering(nn.Linear(3, 1), torch.randn(1, 3))


def test_saved_programs():
    model = seeded_module(Residual, 8, 2, 1.0)
    x = gaussian(4, 8)
    free = torch.export.export(model, (x,), dynamic_shapes={"h": {0: torch.export.Dim("examples")}})
    xr.testing.assert_allclose(capalloc.shattering(free, x).data, capalloc.shattering(model, x).data)
    for size in (1, 3, 4):  # 8 points in batches of 1, of 3 (the last padded) and of 4
        fixed = torch.export.export(model, (gaussian(size, 8),))
        xr.testing.assert_allclose(capalloc.shattering(fixed, x).data, capalloc.shattering(model, x).data)


def test_fewer_examples_where_memory_is_short(monkeypatch):
    """What fits is rounded down to whole pairs of an example and its neighbour."""
    model, x = seeded_module(Residual, 8, 2, 1.0), gaussian(8, 8)
    entries = 9 * 8 + 1  # numbers that the graph computes for one point, head included
    monkeypatch.setattr("capalloc._energy.batches.available_bytes", lambda device: 2 * 4 * 8 * entries * 7)
    few = capalloc.shattering(model, x)
    assert few.data.attrs["num_examples"] in (2, 3)
    monkeypatch.undo()
    xr.testing.assert_allclose(few.data, capalloc.shattering(model, x[: few.data.attrs["num_examples"]]).data)


def test_a_residual_network_of_transformers():
    """Batch norms, projections and max pooling: at every block within a few hundredths."""
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[16, 32, 64, 128], embedding_size=16
    )
    model = seeded_module(transformers.ResNetForImageClassification, config)
    data = capalloc.shattering(model, gaussian(8, 3, 64, 64), lambda o: o.logits, num_lines=1, num_probes=2).data
    streams = data.isel(place=data["kind"].to_numpy() == "stream")
    assert streams.sizes["place"] == 8
    for kind in ("independent", "nearby"):
        difference = streams[f"measured_{kind}"] - streams[f"predicted_{kind}"]
        assert float(abs(difference).max()) < 0.08
    assert float(streams["predicted_independent"].max() - streams["predicted_independent"].min()) > 0.5
