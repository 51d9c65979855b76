"""Coordinates of the parameters: in log|theta| nothing sees rescalings that keep the function."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import capalloc
from capalloc._model.magnitudes import magnitudes, magnitudes_without_zeros
from capalloc._settings import Auto, Dense, Stochastic
from measured import build, data
from reference import by_tensor, capacity_table, constraints

PLAIN = Dense(coordinates="plain")


def mlp() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))


def narrow() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


def convolutions() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten()))


def layer(model: nn.Module) -> nn.Module:
    """A layer times four, the next divided."""
    model[0].weight.data *= 4
    model[0].bias.data *= 4
    model[2].weight.data /= 4
    return model


def units(model: nn.Module) -> nn.Module:
    """Every hidden unit by a number of its own: what enters it times that, what leaves it divided."""
    factors = torch.logspace(-2, 2, len(model[0].bias), dtype=torch.float64)
    model[0].weight.data = (model[0].weight.data.movedim(0, -1) * factors).movedim(-1, 0)
    model[0].bias.data *= factors
    model[2].weight.data = (model[2].weight.data.movedim(1, -1) / factors).movedim(-1, 1)
    return model


def table_of(found: capalloc.Allocation) -> np.ndarray:
    """(parameter, inputs then bias)."""
    table = found.table
    return np.concatenate([table.values.reshape(len(table), -1), table["bias"].values[:, None]], 1)


def assert_same(found: capalloc.Allocation, expected: capalloc.Allocation, **close: float) -> None:
    np.testing.assert_allclose(found.capacity, expected.capacity, **close)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, **close)
    assert found.bias == pytest.approx(expected.bias, rel=close["rtol"])
    assert found.total == pytest.approx(expected.total, rel=close["rtol"])
    if expected.table is not None:
        np.testing.assert_allclose(table_of(found), table_of(expected), **close)


CASES = {
    "layer": (mlp, layer, (60, 4)),
    "units": (mlp, units, (60, 4)),
    "channels": (convolutions, units, (12, 1, 5, 5)),
    "few examples": (mlp, units, (2, 4)),
}


@pytest.mark.proves("2", "a ridge does not see rescalings", oracle="the same function in other parameters")
@pytest.mark.parametrize("ridge", [1e-3, "auto"])
@pytest.mark.parametrize("case", CASES)
def test_a_ridge_does_not_see_how_a_function_is_written(case, ridge):
    make, rescale, shape = CASES[case]
    x, other = data(*shape), rescale(make())
    torch.testing.assert_close(other(x), make()(x))
    one, two = (capalloc.measure(model, x, ridge=ridge, solver="dense") for model in (make(), other))
    assert two.attrs["ridge"] == pytest.approx(one.attrs["ridge"], rel=1e-9)
    assert_same(two, one, rtol=1e-9, atol=1e-10)
    plain = [capalloc.measure(model, x, ridge=1e-3, solver=PLAIN).total for model in (make(), other)]
    assert abs(plain[1] / plain[0] - 1) > 0.03


@pytest.mark.proves("2", "joint entries do not see rescalings", oracle="the same function, brute force")
@pytest.mark.parametrize("case", ["layer", "units", "channels"])
def test_joint_entries_of_a_rank_do_not_see_it_either(case):
    """Nor do they change the map, the bias and the total."""
    make, rescale, shape = CASES[case]
    x, other = data(*shape), rescale(make())
    one, two = (capalloc.measure(model, x) for model in (make(), other))
    assert_same(two, one, rtol=1e-7, atol=1e-8)
    sizes = magnitudes(dict(make().named_parameters())).numpy()
    expected = by_tensor(capacity_table(constraints(make(), x) * sizes), make())
    np.testing.assert_allclose(table_of(one), expected, rtol=1e-6, atol=1e-6)
    plain, other_plain = (capalloc.measure(model, x, solver=PLAIN) for model in (make(), other))
    np.testing.assert_allclose(plain.capacity, one.capacity, rtol=1e-9)
    assert plain.total == pytest.approx(one.total, rel=1e-9)
    assert np.abs(other_plain.by_parameter - plain.by_parameter).max() > 0.1


@pytest.mark.proves("2", "a unit's symmetry is shared alike", oracle="closed form")
def test_the_symmetry_of_a_unit_is_shared_by_its_parameters():
    """Its tangent in log|theta| is 1 for what enters the unit and -1 for what leaves it: 3 + 1 + 2 of them."""
    found = capalloc.measure(narrow(), 3 * data(200, 3))
    assert found.total == pytest.approx(26 - 4, rel=1e-9)
    np.testing.assert_allclose(found.by_parameter, [12 * 5 / 6, 4 * 5 / 6, 8 * 5 / 6, 2], rtol=1e-7)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    powers=st.lists(st.floats(-8, 8), min_size=5, max_size=5),
    last=st.floats(-12, 4),
    many=st.booleans(),
    plain=st.booleans(),
)
@pytest.mark.proves("2", "a rank does not see rescalings", oracle="the same function, and its multiples")
def test_a_rank_does_not_see_the_scale_of_layers_and_units(powers, last, many, plain):
    """Every unit by up to 1e8, what leaves it divided, and outputs by down to 1e-12: map and total stay."""
    x, model = data(60 if many else 3, 4), mlp()
    factors = 10 ** torch.tensor(powers, dtype=torch.float64)
    other = copy.deepcopy(model)
    other[0].weight.data *= factors[:, None]
    other[0].bias.data *= factors
    other[2].weight.data /= factors
    other[4].weight.data *= 10.0**last
    other[4].bias.data *= 10.0**last
    solver = PLAIN if plain else Dense()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", capalloc.CapacityWarning)
        one, two = (capalloc.measure(m, x, solver=solver) for m in (model, other))
    assert two.attrs["rank"] == one.attrs["rank"]
    np.testing.assert_allclose(two.capacity, one.capacity, rtol=1e-6, atol=1e-6)
    assert two.total == pytest.approx(one.total, rel=1e-6)


def test_layers_of_unlike_scale_count_as_blocks_count_them():
    """Two layers of tanh, the first in thousandths and the last in billionths: all 26 parameters are seen."""
    x, model = data(60, 3), build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    model[0].weight.data *= 1e-3
    model[2].weight.data *= 1e-9
    found = capalloc.measure(model, x)
    assert found.attrs["rank"] == 26
    assert found.total == pytest.approx(26, rel=1e-5)
    assert capalloc.propagate(model, x, solver="block").total == pytest.approx(26, rel=1e-6)


def test_fewer_rows_than_parameters_have_joint_entries_too():
    """The range of C alone is turned: 2 examples, of which one is there twice."""
    x = data(1, 4).repeat(2, 1)
    with pytest.warns(capalloc.CapacityWarning, match="rows of constraints"):
        one, two = (capalloc.measure(model, x) for model in (mlp(), units(mlp())))
    assert_same(two, one, rtol=1e-6, atol=1e-7)
    assert one.total == pytest.approx(one.attrs["rank"], rel=1e-9)


def test_the_scale_of_a_frozen_norm_may_be_folded_into_the_weights():
    def normed() -> nn.Module:
        norm = nn.BatchNorm1d(5, affine=False)
        return nn.Sequential(nn.Linear(4, 5, bias=False), norm, nn.ReLU(), nn.Linear(5, 2))

    x, apart, folded = data(50, 4), build(normed), build(normed)
    norm = folded[1]
    scale = (norm.running_var + norm.eps).sqrt()
    folded[0].weight.data /= scale[:, None]
    norm.running_mean /= scale
    norm.running_var.fill_(1 - norm.eps)
    torch.testing.assert_close(apart(x), folded(x))
    one, two = (capalloc.measure(model, x, ridge=1e-3) for model in (apart, folded))
    assert_same(two, one, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("examples", [40, 2])
def test_the_same_probes_give_the_same_estimate(examples):
    """In the space of parameters, and in that of rows."""
    x, solver = data(examples, 4), Stochastic(num_probes=16)
    one, two = (capalloc.measure(model, x, ridge="auto", solver=solver) for model in (mlp(), units(mlp())))
    assert_same(two, one, rtol=1e-6, atol=1e-8)
    exact = capalloc.measure(mlp(), x, ridge=one.attrs["ridge"], solver="dense")
    assert abs(one.total - exact.total) < 5 * one.attrs["total_standard_error"]
    assert one.attrs["coordinates"] == "log"


def test_several_ridges_are_in_the_same_coordinates():
    x, solver = data(40, 4), Stochastic(num_probes=16)
    one, two = (capalloc.measure(model, x, ridge=[1e-3, 1e-2], solver=solver) for model in (mlp(), units(mlp())))
    for ridge, found in one.items():
        assert_same(two[ridge], found, rtol=1e-6, atol=1e-8)


def test_plain_coordinates_of_the_stochastic_solver_are_the_dense_ones():
    x = data(40, 4)
    exact = capalloc.measure(mlp(), x, ridge=0.01, solver=PLAIN)
    found = capalloc.measure(mlp(), x, ridge=0.01, solver=Stochastic(num_probes=64, coordinates="plain"))
    assert abs(found.total - exact.total) < 5 * found.attrs["total_standard_error"]
    assert found.attrs["coordinates"] == exact.attrs["coordinates"] == "plain"


# Parameters of zero


def with_zeros(where: Callable[[nn.Module], Tensor]) -> nn.Module:
    model = mlp()
    where(model).data.zero_()
    return model


@pytest.mark.proves("2", "zeros hold nothing with a ridge", oracle="the limit of small ones")
def test_a_ridge_leaves_parameters_of_zero_nothing():
    x = data(60, 4)
    model = with_zeros(lambda m: m[2].bias)
    found = capalloc.measure(model, x, ridge=1e-3)
    assert float(found.by_parameter.sel(parameter="2.bias")) == pytest.approx(0, abs=1e-20)
    assert "6 of 75 parameters are exactly 0" in found.attrs["notes"][-1]
    model[2].bias.data += 1e-9
    assert_same(capalloc.measure(model, x, ridge=1e-3), found, rtol=1e-6, atol=1e-8)
    plain = capalloc.measure(with_zeros(lambda m: m[2].bias), x, ridge=1e-3, solver=PLAIN)
    assert float(plain.by_parameter.sel(parameter="2.bias")) > 0.1
    sampled = capalloc.measure(with_zeros(lambda m: m[2].bias), x, ridge=1e-3, solver=Stochastic(num_probes=8))
    assert "6 of 75 parameters are exactly 0" in sampled.attrs["notes"][-1]


@pytest.mark.proves("2", "zeros keep theirs without a ridge", oracle="plain coordinates")
@pytest.mark.parametrize("where", [lambda m: m[2].bias, lambda m: m[2].weight[1:3], lambda m: m[0].weight[0, :2]])
def test_without_a_ridge_parameters_of_zero_keep_theirs(where):
    x, model = data(60, 4), with_zeros(where)
    found, plain = capalloc.measure(model, x), capalloc.measure(model, x, solver=PLAIN)
    np.testing.assert_allclose(found.capacity, plain.capacity, rtol=1e-8)
    assert found.total == pytest.approx(plain.total, rel=1e-9)
    other = units(with_zeros(where))
    assert_same(capalloc.measure(other, x), found, rtol=1e-5, atol=1e-6)


@pytest.mark.proves("2", "zeros hold what no other parameter can hold", oracle="the limit of D_kk to 0, in two steps")
def test_zeros_hold_what_no_other_parameter_can_hold():
    """Two linear layers have far more symmetries than rescalings: the others take up all that they can."""
    model = build(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    model[0].weight.data[:, :2] = 0
    model[0].bias.data[:] = 0
    x, zero = data(60, 4), magnitudes(dict(model.named_parameters())) == 0
    found = capalloc.measure(model, x)
    C = torch.from_numpy(constraints(model, x)).flatten(0, 2) * magnitudes(dict(model.named_parameters())).where(
        ~zero, 1.0
    )
    others, least = C[:, ~zero], C[:, zero]
    left, singular, right = torch.linalg.svd(others, full_matrices=False)
    kept = singular > 1e-10 * singular[0]
    share = torch.zeros(len(zero), dtype=torch.float64)
    share[~zero] = right[kept].square().sum(0)
    beside = least - left[:, kept] @ (left[:, kept].T @ least)
    _, singular, right = torch.linalg.svd(beside, full_matrices=False)
    share[zero] = right[singular > 1e-10 * torch.linalg.matrix_norm(C, 2)].square().sum(0)
    np.testing.assert_allclose(found.by_parameter, by_tensor(share.numpy()[:, None], model)[:, 0], atol=1e-7)
    assert 0 < float(share[zero].sum()) < int(zero.sum()) - 1
    with torch.no_grad():
        model[0].weight *= 5
        model[1].weight /= 5
    np.testing.assert_allclose(capalloc.measure(model, x).by_parameter, found.by_parameter, atol=1e-7)


def test_a_network_of_zeros_has_plain_coordinates():
    blank = {"a": torch.zeros(2, 2), "b": torch.tensor(0.0)}
    assert torch.equal(magnitudes_without_zeros(blank), torch.ones(5).double())
    some = magnitudes_without_zeros({"a": torch.tensor([0.0, -2.0, 8.0])})
    torch.testing.assert_close(some, torch.tensor([4e-7, 2.0, 8.0]).double())


# The scale of a ridge


@pytest.mark.parametrize("examples", [40, 2])
@pytest.mark.parametrize("coordinates", ["log", "plain"])
def test_the_mean_eigenvalue_is_that_of_the_coordinates(coordinates, examples):
    model, x = mlp(), data(examples, 4)
    C = constraints(model, x)
    if coordinates == "log":
        C = C * magnitudes(dict(model.named_parameters())).numpy()
    exact = (C**2).sum() / len(x) / min(C.shape[-1], C[..., 0].size)
    found = capalloc.solvers.mean_eigenvalue(model, x, num_probes=400, coordinates=coordinates)
    assert found == pytest.approx(exact, rel=4 * (2 / 400) ** 0.5)
    settings = Dense(coordinates=coordinates)
    ridge = capalloc.measure(model, x, ridge="auto", solver=settings).attrs["ridge"]
    share = 0.01 if examples == 40 else 0.1
    assert ridge == pytest.approx(share * capalloc.solvers.mean_eigenvalue(model, x, coordinates=coordinates))


def test_parameters_of_zero_are_no_eigenvalues():
    model, x = with_zeros(lambda m: m[2].weight), data(60, 4)
    C = constraints(model, x) * magnitudes(dict(model.named_parameters())).numpy()
    found = capalloc.solvers.mean_eigenvalue(model, x, num_probes=400)
    assert found == pytest.approx((C**2).sum() / 60 / (75 - 30), rel=4 * (2 / 400) ** 0.5)


@pytest.mark.parametrize("solver", ["dense", "stochastic"])
def test_an_auto_ridge_needs_a_parameter_that_moves_the_outputs(solver):
    model = build(lambda: nn.Linear(3, 1))
    model.weight.data.zero_()
    model.bias.data.zero_()
    with pytest.raises(ValueError, match='ridge="auto" is a share of the mean eigenvalue of G, which is zero'):
        capalloc.measure(model, data(10, 3), ridge="auto", solver=solver)


@pytest.mark.parametrize("kind", [Dense, Stochastic])
def test_unknown_coordinates_are_refused(kind):
    with pytest.raises(ValueError, match='coordinates must be "log" or "plain", got \'polar\''):
        kind(coordinates="polar")


def test_both_solvers_of_auto_share_their_coordinates():
    with pytest.raises(ValueError, match="coordinates must be the same for both solvers, got 'log' for dense"):
        Auto(stochastic=Stochastic(coordinates="plain"))


def test_a_run_of_an_auto_ridge_goes_on_with_the_same_one(tmp_path):
    x, run = data(40, 4), capalloc.Run(checkpoint=tmp_path / "run", checkpoint_seconds=0)
    first, again = (capalloc.measure(mlp(), x, ridge="auto", run=run) for _ in range(2))
    assert again.attrs["ridge"] == first.attrs["ridge"]
    np.testing.assert_array_equal(again.capacity, first.capacity)


def test_rescaling_copies_leave_the_model_alone():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    capalloc.measure(model, data(30, 4), ridge="auto")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_ridge_of_noise_has_its_prior_on_the_logarithms():
    """The posterior of t = log|theta| given noisy constraints: p - trace(posterior covariance) / prior variance."""
    model, x, noise, prior = mlp(), data(20, 4), 0.3, 2.0
    sizes = magnitudes(dict(model.named_parameters()))
    C = torch.from_numpy(constraints(model, x)).flatten(0, 2) * sizes
    posterior = torch.linalg.inv(C.T @ C / noise + torch.eye(len(sizes), dtype=torch.float64) / prior)
    found = capalloc.measure(model, x, ridge=capalloc.solvers.ridge_from_noise(noise, len(x), prior))
    assert found.total == pytest.approx(len(sizes) - float(posterior.trace()) / prior, rel=1e-9)
