"""Section 3: decoupling measured on examples, against brute force and against theory, and its result."""

from __future__ import annotations

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc._decoupling.coupling import all_pairs, feeding_rows, some_pairs
from capalloc._decoupling.gate_decoupling import decoupling, gate_moments
from capalloc._decoupling.gaussian_gates import gaussian_decoupling
from capalloc._decoupling.sites import Gated
from capalloc._model.problem import prepare
from capalloc._runtime.files import write_dataset
from capalloc.results.decoupling import Decoupling
from zoo import gaussian, seeded_module


def dense(units: int = 12, inputs: int = 5, activation: nn.Module | None = None, seed: int = 0) -> nn.Sequential:
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(inputs, units, bias=False), activation or nn.ReLU(), nn.Linear(units, 2)
    )
    return seeded_module(build, seed=seed)


def convolutional() -> nn.Sequential:
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 3),
        nn.Softmax(-1),
    )
    return seeded_module(build)


def brute_force(gates: Tensor) -> np.ndarray:
    """d of all pairs of columns, pair by pair."""
    a = gates.double().numpy()
    return np.array(
        [
            1 - abs((a[:, j] * a[:, k]).mean()) / math.sqrt((a[:, j] ** 2).mean() * (a[:, k] ** 2).mean())
            for j in range(a.shape[1])
            for k in range(j + 1, a.shape[1])
        ]
    )


@pytest.mark.proves("3", "d_jj', delta, its mean weighted by squared cosines", oracle="loops over pairs")
@pytest.mark.parametrize(
    ("activation", "gate"),
    [
        (nn.ReLU(), lambda z: (z > 0).double()),
        (nn.Tanh(), lambda z: 1 - z.tanh().square()),
        (nn.LeakyReLU(-1.0), torch.sign),
    ],
    ids=["relu", "tanh", "abs"],
)
def test_all_pairs_meet_brute_force(activation, gate):
    network, x = dense(activation=activation), gaussian(40, 5)
    weight = network[0].weight.detach()
    gates = gate(x @ weight.T)
    row = decoupling(network, x)["1"]
    each = brute_force(gates)
    assert float(row["decoupling"]) == pytest.approx(each.mean(), abs=1e-12)
    np.testing.assert_allclose(row["decoupling_quantiles"], np.quantile(each, row["quantile"]), atol=1e-12)
    np.testing.assert_allclose(row["decoupling_histogram"], np.histogram(each, 20, (0, 1))[0] / len(each))
    rows = weight / weight.norm(dim=1, keepdim=True)
    j, k = np.triu_indices(12, 1)
    squares = (rows @ rows.T).numpy()[j, k] ** 2
    assert float(row["coupled_decoupling"]) == pytest.approx((squares * each).sum() / squares.sum(), abs=1e-12)
    assert float(row["example_decoupling"]) == pytest.approx(brute_force(gates.T).mean(), abs=1e-6)  # kept as float32
    assert float(row["mean_squared_gate"]) == pytest.approx(float(gates.square().mean()))
    np.testing.assert_allclose(gate_moments(network, x)["1"], gates.T @ gates / 40, atol=1e-12)


@pytest.mark.proves("3", "ReLU: d = arccos(rho) / pi", oracle="the closed form at the angles of the weights")
def test_a_wide_relu_layer_meets_arccos_within_its_standard_error():
    network = dense(units=256, inputs=24, seed=3)
    rows = F.normalize(network[0].weight.detach(), dim=1)
    j, k = all_pairs(256).T
    rho = (rows[j] * rows[k]).sum(1)
    theory = gaussian_decoupling("relu", rho)
    np.testing.assert_allclose(theory, rho.arccos() / math.pi, atol=1e-12)
    row = decoupling(network, gaussian(4000, 24), num_pairs=4000)["1"]
    assert abs(float(row["decoupling"]) - float(theory.mean())) < 3 * float(row["decoupling_error"])
    assert float(row["decoupling_error"]) < 0.003
    coupled = float((rho.square() * theory).sum() / rho.square().sum())
    assert abs(float(row["coupled_decoupling"]) - coupled) < 3 * float(row["coupled_decoupling_error"])
    # Two Gaussian examples are nearly orthogonal in 24 dimensions: one half, on average exactly.
    assert abs(float(row["example_decoupling"]) - 0.5) < 3 * float(row["example_decoupling_error"])


@pytest.mark.parametrize("num_pairs", [60, 10**6], ids=["sampled pairs", "all pairs"])
def test_standard_errors_are_the_spread_of_repeated_estimates(num_pairs):
    network = dense(units=24, inputs=6)
    rows = F.normalize(network[0].weight.detach(), dim=1)
    j, k = all_pairs(24).T
    expected = float(gaussian_decoupling("relu", (rows[j] * rows[k]).sum(1)).mean())
    scores = []
    for seed in range(14):
        generator = torch.Generator().manual_seed(seed)
        row = decoupling(network, gaussian(400, 6, seed=100 + seed), num_pairs=num_pairs, generator=generator)["1"]
        scores.append((float(row["decoupling"]) - expected) / float(row["decoupling_error"]))
    assert 0.6 < np.std(scores) < 1.5
    assert abs(np.mean(scores)) < 1


def test_sampled_pairs_meet_all_pairs():
    network, x = convolutional(), gaussian(60, 2, 8, 8)
    whole, part = decoupling(network, x, num_pairs=10**6), decoupling(network, x, num_pairs=500)
    for layer in whole.layers:
        for name in ("decoupling", "coupled_decoupling"):
            exact, error = float(whole[layer][name]), float(part[layer][f"{name}_error"])
            assert math.isnan(exact) or abs(float(part[layer][name]) - exact) < 4 * error + 1e-12, (layer, name)


def test_results_do_not_depend_on_the_batch_size():
    network, x = convolutional(), gaussian(50, 2, 8, 8)
    whole = decoupling(network, x, num_pairs=300, batch_size=50).data
    for options in ({"batch_size": 1}, {"batch_size": 7}):
        xr.testing.assert_allclose(decoupling(network, x, num_pairs=300, **options).data, whole, rtol=1e-9)
    batches = [(x[:20], torch.zeros(20)), (x[20:23], torch.zeros(3)), (x[23:], torch.zeros(27))]
    xr.testing.assert_allclose(decoupling(network, iter(batches), num_pairs=300).data, whole, rtol=1e-9)
    small, large = (gate_moments(network, x, batch_size=size) for size in (7, 50))
    for layer, moment in small.items():
        np.testing.assert_allclose(moment, large[layer], atol=1e-12)


def test_kinds_and_names_follow_the_graph():
    result = decoupling(convolutional(), gaussian(30, 2, 8, 8))
    assert result.layers == ("1", "2", "3", "5", "7", "9")
    kinds = ["normalisation", "activation", "pooling", "activation", "normalisation", "softmax"]
    assert result.data["kind"].to_numpy().tolist() == kinds
    assert int(result["3"]["units"]) == 4 * 8 * 8  # windows of 2 x 2 share the 8 x 8 inputs out
    assert float(result["3"]["mean_squared_gate"]) == pytest.approx(1 / 4)
    assert float(result["3"]["saturated"]) == pytest.approx(3 / 4)
    assert float(result["1"]["decoupling"]) == pytest.approx(0, abs=1e-12)  # frozen statistics
    assert math.isnan(float(result["1"]["saturated"]))
    assert math.isnan(float(result["3"]["coupled_decoupling"]))
    assert not math.isnan(float(result["2"]["coupled_decoupling"]))  # through the normalisation
    assert list(gate_moments(convolutional(), gaussian(30, 2, 8, 8))) == ["2", "5"]
    assert list(gate_moments(convolutional(), gaussian(30, 2, 8, 8), layers=["3"])) == ["3"]


class Functional(nn.Module):
    """Activations called in `forward`, one of them twice, one on a constant; attention; a product of signals."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.linear(x)) * torch.exp(self.linear.bias)
        h = self.relu(h + x)
        weights = torch.softmax(h @ h.transpose(1, 2), -1)
        h = F.dropout(weights, 0.1, self.training) @ h
        h = torch.where(torch.tensor([True, False, True, True]), h, 2 * h)  # a fixed mask is no gate
        return h * torch.sigmoid(h)


def test_functional_activations_and_products():
    result = decoupling(seeded_module(Functional), gaussian(20, 3, 4))
    assert result.layers == ("relu", "relu:2", "softmax", "sigmoid")
    assert result.data["kind"].to_numpy().tolist() == ["activation", "activation", "attention", "activation"]
    assert not math.isnan(float(result["relu"]["coupled_decoupling"]))
    assert math.isnan(float(result["relu:2"]["coupled_decoupling"]))  # a residual sum: no one matrix feeds it
    assert any("product of two signals" in note for note in result.data.attrs["notes"])
    assert "product of two signals" in repr(result)


def test_dead_units_take_no_part():
    network, x = dense(units=4, inputs=3), gaussian(200, 3).abs()
    with torch.no_grad():
        network[0].weight[0] = -1
    row = decoupling(network, x)["1"]
    assert float(row["dead"]) == 1 / 4
    gates = (x @ network[0].weight.detach().T > 0).double()
    alive = gates[:, gates.any(0)]
    assert float(row["decoupling"]) == pytest.approx(brute_force(alive).mean())
    with torch.no_grad():
        network[0].weight.copy_(-torch.ones(4, 3))
    row = decoupling(network, x)["1"]
    assert float(row["dead"]) == 1
    for name in ("decoupling", "coupled_decoupling", "example_decoupling"):
        assert math.isnan(float(row[name]))
    assert "–" in repr(decoupling(network, x))


def test_saturated_units():
    network, x = dense(activation=nn.Tanh()), gaussian(50, 5)
    z = x @ network[0].weight.detach().T
    with torch.no_grad():
        network[0].weight.mul_(10)
    share = float(((10 * z).tanh().square() >= 0.99).double().mean())
    assert float(decoupling(network, x)["1"]["saturated"]) == pytest.approx(share)


def test_one_unit_has_no_pair():
    row = decoupling(dense(units=1), gaussian(30, 5))["1"]
    assert math.isnan(float(row["decoupling"]))
    assert math.isnan(float(row["coupled_decoupling"]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3, stride=2),
        nn.Conv1d(4, 6, 3, dilation=2, groups=2),
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2)),
        nn.Conv2d(2, 3, 2, padding="valid"),
        nn.Conv3d(1, 2, 2),
        nn.Linear(6, 5),
    ],
    ids=str,
)
def test_squared_cosines_are_those_of_the_unrolled_matrix(layer):
    layer = layer.double()
    axes = {nn.Linear: 1, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[type(layer)]
    first = 6 if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (3, 6) if isinstance(layer, nn.Linear) else (first, *[7, 6, 4][:axes])
    network = nn.Sequential(layer, nn.ReLU())
    gated = Gated.of(prepare(network, gaussian(2, *shape)), 2)
    rows = feeding_rows(gated.graph, gated.sites[0].node, gated.depends)
    matrix = torch.autograd.functional.jacobian(lambda x: layer(x[None]).flatten(), gaussian(*shape)).flatten(1)
    directions = F.normalize(matrix, dim=1)
    pairs = all_pairs(len(matrix))
    expected = (directions[pairs[:, 0]] * directions[pairs[:, 1]]).sum(1).square()
    np.testing.assert_allclose(rows.squared_cosines(pairs), expected, atol=1e-12)
    # Sampled pairs reach all that couple, and them alone up to zeros by chance.
    sampled = rows.pairs(len(matrix), min(len(pairs) - 1, 200), torch.Generator().manual_seed(0))
    assert (sampled[:, 0] != sampled[:, 1]).all()
    assert (rows.squared_cosines(sampled) > 0).double().mean() > 0.5
    assert sampled.max() < len(matrix)
    many = torch.cat([rows.pairs(len(matrix), 200, torch.Generator().manual_seed(s)) for s in range(30)])
    if len(pairs) > 200:
        coupled = {tuple(sorted(p)) for p in pairs[expected > 1e-12].tolist()}
        seen = {tuple(sorted(p)) for p in many.tolist()}
        assert len(coupled & seen) > 0.8 * len(coupled)


def test_pairs_are_distinct_and_uniform():
    assert some_pairs(4, 10, torch.Generator()).tolist() == all_pairs(4).tolist()
    pairs = some_pairs(6, 14, torch.Generator().manual_seed(0))
    assert len(pairs) == 14
    many = torch.cat([some_pairs(6, 14, torch.Generator().manual_seed(s)) for s in range(300)]).sort(1).values
    assert (many[:, 0] != many[:, 1]).all()
    counts = np.unique(many.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 15
    np.testing.assert_allclose(counts / len(many), 1 / 15, atol=0.02)


def test_a_reparametrised_weight_has_no_rows_to_compare():
    network = seeded_module(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU()))
    assert math.isnan(float(decoupling(network, gaussian(9, 3))["1"]["coupled_decoupling"]))


def test_the_model_and_the_global_random_state_are_left_alone():
    network = convolutional().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    decoupling(network, gaussian(10, 2, 8, 8))
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(state, torch.get_rng_state())


def test_many_units_are_compared_on_some_of_them():
    network = seeded_module(lambda: nn.Sequential(nn.Linear(8, 5000), nn.ReLU()))
    row = decoupling(network, gaussian(150, 8), num_pairs=100)["1"]
    assert float(row["example_decoupling_error"]) > 0
    with pytest.raises(ValueError, match=r"layer '1' has 9000 units"):
        gate_moments(seeded_module(lambda: nn.Sequential(nn.Linear(2, 9000), nn.ReLU())), gaussian(3, 2))


def test_files_tables_and_pictures(tmp_path):
    result = decoupling(convolutional(), gaussian(30, 2, 8, 8), progress=False)
    result.save(tmp_path / "d.nc")
    loaded = Decoupling.load(tmp_path / "d.nc")
    xr.testing.assert_identical(loaded.to_xarray(), result.to_xarray())
    assert repr(loaded) == repr(result)
    assert [p.name for p in tmp_path.iterdir()] == ["d.nc"]
    frame = loaded.to_pandas()
    assert list(frame.index) == list(result.layers)
    assert frame.loc["2", "decoupling"] == float(result["2"]["decoupling"])
    assert len(result) == 6
    for text in (repr(result), result._repr_html_()):
        assert "pooling" in text
        assert "±" in text
    ax = result.plot()
    assert [t.get_text() for t in ax.get_xticklabels()][2] == "3 (pooling)"
    assert result.plot(ax) is ax
    plt.close(ax.figure)
    json.dumps(result.data.attrs)


def test_names_are_escaped_in_html():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>", nn.ReLU())
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, "<b>")(self.linear(x))

    html = decoupling(Network(), torch.ones(2, 2))._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html


@pytest.mark.parametrize(
    ("inputs", "options", "match"),
    [
        (gaussian(1, 5), {}, "hold 1 example, and decoupling compares examples"),
        (gaussian(3, 5), {"batch_size": 0}, "batch_size must be a positive integer"),
        (gaussian(3, 5), {"num_pairs": 0}, "num_pairs must be a positive integer"),
    ],
)
def test_refusals(inputs, options, match):
    with pytest.raises(ValueError, match=match):
        decoupling(dense(), inputs, **options)


def test_more_refusals(tmp_path):
    with pytest.raises(ValueError, match="no gates: d = 0"):
        decoupling(seeded_module(nn.Linear, 3, 2), gaussian(4, 3))
    with pytest.raises(ValueError, match=r"layers names \['7'\], which the model lacks; it has \['1'\]"):
        gate_moments(dense(), gaussian(4, 5), layers=["7"])
    result = decoupling(dense(), gaussian(4, 5))
    with pytest.raises(KeyError, match="no layer '7'"):
        result["7"]
    with pytest.raises(ValueError, match=r"the dataset lacks \['dead'\]"):
        Decoupling(result.data.drop_vars("dead"))
    with pytest.raises(ValueError, match=r"the dataset lacks \['layer'\]"):
        Decoupling(result.data.drop_vars("layer"))
    with pytest.raises(ValueError, match=r"decoupling must lie in \[0, 1\], but holds 2"):
        Decoupling(result.data.assign(decoupling=("layer", [2.0])))
    result.save(tmp_path / "d.nc")
    (tmp_path / "cut.nc").write_bytes((tmp_path / "d.nc").read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged or no NetCDF file"):
        Decoupling.load(tmp_path / "cut.nc")
    write_dataset(result.data.drop_vars("dead"), tmp_path / "lacks.nc", "capalloc-decoupling", 1)
    with pytest.raises(ValueError, match=r"lacks.nc is damaged: the dataset lacks"):
        Decoupling.load(tmp_path / "lacks.nc")
