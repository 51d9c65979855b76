"""The stochastic solver against the dense one, and its parts against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capalloc import Allocation
from capalloc._linalg.block_cg import begin, begin_fit, step, step_fit, whitened
from capalloc._linalg.credibility import students_factor
from capalloc._linalg.inverse_root import InverseRoot
from capalloc._linalg.kronecker import Kronecker, KroneckerBlock, kronecker, merged_axes, turn
from capalloc._linalg.lanczos import quadrature, recurrence
from capalloc._measure.estimates import Estimate, estimated, perturbed
from capalloc._measure.estimators import Perturbed, Regressed
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import Examples, plan_examples
from capalloc._measure.forecast import Forecast
from capalloc._measure.measure import measure
from capalloc._measure.precondition import precondition
from capalloc._measure.probe import Probing, advance, begin_state
from capalloc._measure.ridge import mean_eigenvalue, ridge_from_noise
from capalloc._measure.stochastic import Measured, allocation, parts_of_places
from capalloc._measure.task import make_task
from capalloc._measure.work_plan import ProductCost
from capalloc._runtime.memory import Budget
from capalloc._runtime.steps import Steps
from capalloc._settings import Auto, Markov, Run, Stochastic
from capalloc.partitions import patches
from measured import data
from zoo import seeded_module

RIDGE, STRONGER = 3e-3, 0.03
seeded_model = partial(seeded_module, seed=1)


def conv_net() -> nn.Module:
    return seeded_model(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(64, 2),
        )
    )


def dense_net() -> nn.Module:
    """Half the operators of the convolutions, for answers from many seeds."""
    return seeded_model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2)))


IMAGES = data(24, 1, 8, 8)
#: number of examples -> network and ridge of the answers from many seeds
OF = {24: (dense_net, 4e-4), 2: (conv_net, 2.5e-5)}


@cache
def dense(ridge: float = RIDGE) -> Allocation:
    return measure(conv_net(), IMAGES, ridge=ridge)


@cache
def exact_of(examples: int = 24) -> Allocation:
    make, ridge = OF[examples]
    return measure(make(), IMAGES[:examples], ridge=ridge)


def stochastic(seed: int = 0, make: Callable[[], nn.Module] = conv_net, **kwargs: object) -> Allocation:
    generator = torch.Generator().manual_seed(seed)
    others = {"ridge": RIDGE} | {key: kwargs.pop(key) for key in ("ridge", "batch_size") if key in kwargs}
    solver = Stochastic(**{"rtol": 0.2, "num_probes": 16} | kwargs)
    return measure(make(), IMAGES, generator=generator, solver=solver, **others)


def examples_of(model: nn.Module, x: Tensor) -> Examples:
    return plan_examples(make_task(model, x), Stochastic())[0]


def sums_of(examples: Examples) -> ExampleSums:
    return ExampleSums(examples, Steps(examples))


@cache
def one() -> Allocation:
    return stochastic()


@cache
def repeats(rtol: float = 0.01, examples: int = 24, number: int = 40, probes: int = 6) -> list[Allocation]:
    """Answers from many seeds, the preconditioner shared; 2 examples have fewer rows than there are parameters."""
    make, ridge = OF[examples]
    settings = Stochastic(rtol=rtol, num_probes=probes, spectrum=False)
    found = []
    with torch.no_grad():
        task = make_task(make(), IMAGES[:examples])
        made, plan = plan_examples(task, settings)
        assert made.fewer_rows == (examples == 2)
        preconditioner = precondition(made)
        for seed in range(number):
            sums = sums_of(replace(made, seed=seed))
            estimator = Regressed(sums) if made.fewer_rows else Perturbed(sums, made)
            vars(estimator)["preconditioner"] = preconditioner
            probing = Probing(
                estimator,
                settings,
                (ridge,),
                parts_of_places(task.problem.places, task.space.intercept, None),
                plan.probes,
            )
            state = begin_state(probing)
            while not state.reason:
                state = advance(probing, state)
            found.append(allocation(Measured(probing, state, Forecast(0, 0), plan), 0, {}))
    return found


# ---- the whole against the dense solver


def test_maps_are_unbiased_and_their_errors_calibrated() -> None:
    """Over seeds: means within their own error, and mean squared z-scores at one, for slots, tensors, bias, total.

    A mean square over 40 independent seeds has a relative standard error of root 2/40 = 0.22: bounds at four of them
    for single numbers, and tighter ones for the slots, which are many.
    """
    exact, found = exact_of(), repeats()
    maps = np.stack([a.capacity.values.ravel() for a in found])
    errors = np.stack([a.capacity.standard_error.values.ravel() for a in found])
    truth = exact.capacity.values.ravel()
    spread = maps.std(0, ddof=1) / math.sqrt(len(found))
    z = (maps.mean(0) - truth) / spread
    assert np.mean(z**2) < 1.6
    np.testing.assert_allclose(np.mean(errors**2), np.mean((maps - truth) ** 2), rtol=0.25)
    totals = np.array([a.total for a in found])
    claimed = np.mean([a.attrs["total_standard_error"] ** 2 for a in found])
    assert 0.3 < np.mean((totals - exact.total) ** 2) / claimed < 2.2
    biases = np.array([a.bias for a in found])
    claimed = np.mean([a.attrs["bias_standard_error"] ** 2 for a in found])
    assert 0.3 < np.mean((biases - exact.bias) ** 2) / claimed < 2.2
    tensors = np.stack([a.by_parameter.values for a in found])
    claimed = np.mean([list(a.attrs["by_parameter_standard_error"].values()) for a in found])
    assert 0.5 < np.abs(tensors - exact.by_parameter.values).mean() * math.sqrt(math.pi / 2) / claimed < 1.6


def test_standard_errors_of_patches_are_calibrated() -> None:
    exact = exact_of().by(patches(4, 4)).values
    found = np.stack([a.by(patches(4, 4)).values for a in repeats()])
    relative = np.abs(found / exact - 1).max(1)
    claimed = np.mean([a.attrs["relative_standard_error"] for a in repeats()])
    assert 0.4 < np.median(relative) / claimed < 2.5


@pytest.mark.parametrize("examples", [24, 2])
def test_errors_of_inputs_are_calibrated_from_a_few_probes(examples) -> None:
    """Three pairs say next to nothing of one input: taken alone, its error is often far too small (z of 3 and more)."""
    exact, found = exact_of(examples).capacity.values, repeats(0.02, examples, 12, probes=3)
    z = np.stack([(a.capacity.values - exact) / a.capacity.standard_error.values for a in found])
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.4


@pytest.mark.parametrize("examples", [24, 2])
@pytest.mark.parametrize("rtol", [0.02, 0.4])  # the default, and solves that stop early
def test_errors_of_tensors_and_total_cover_the_solves(examples, rtol) -> None:
    count = 24 if (examples, rtol) == (2, 0.02) else 12  # the first are those of the test below
    exact, found = exact_of(examples), repeats(rtol, examples, count)
    errors = [[*a.attrs["by_parameter_standard_error"].values(), a.attrs["total_standard_error"]] for a in found]
    values = [[*a.by_parameter.values, a.total] for a in found]
    z = (torch.tensor(values) - torch.tensor([*exact.by_parameter.values, exact.total])) / torch.tensor(errors)
    assert float(z.square().mean(0).sqrt().max()) < 1 + 2.8 / (2 * count) ** 0.5  # the largest of seven


def test_with_fewer_rows_than_parameters_maps_are_right() -> None:
    exact, found = exact_of(2), repeats(0.02, 2, 24)
    maps = np.stack([a.capacity.values.ravel() for a in found])
    errors = np.stack([a.capacity.standard_error.values.ravel() for a in found])
    truth = exact.capacity.values.ravel()
    assert np.abs(maps.mean(0) - truth).mean() < 0.1 * truth.mean()
    assert 0.6 < np.sqrt(np.mean((maps - truth) ** 2) / np.mean(errors**2)) < 1.3
    assert abs(np.mean([a.total for a in found]) / exact.total - 1) < 0.01


def test_fitted_rows_grow_from_below() -> None:
    K, xi, ridge = spd(40, 3), data(3, 40, seed=4).sign(), 0.05
    exact = float((xi @ K @ torch.linalg.inv(K + ridge * torch.eye(40, dtype=torch.float64)) * xi).sum())
    now = begin_fit(xi, xi @ K)
    energies = []
    for _ in range(12):
        now = step_fit(now, lambda y: y @ K, ridge)
        q = xi - now.residual - ridge * now.solution
        torch.testing.assert_close(q, now.solution @ K)
        energies.append(now.energy)
        assert now.energy == pytest.approx(float((q * (xi + now.residual)).sum()))
        assert now.energy <= exact * (1 + 1e-10)
    assert all(b >= a for a, b in itertools.pairwise(energies))
    assert energies[-1] == pytest.approx(exact, rel=1e-4)


def test_gates_that_move_anywhere_are_found() -> None:
    """Hardswish is flat at the first example, and curved at others."""
    model = seeded_model(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Hardswish()))
    model[2].bias.data.fill_(5.0)
    x = torch.cat([torch.zeros(1, 3, dtype=torch.float64), 20 * data(15, 3)])
    assert examples_of(model, x).operator.name == "forward"
    assert examples_of(model, x[:1]).operator.name == "piecewise"


def test_every_number_has_an_error_and_sums_agree() -> None:
    found = repeats()[0]
    assert (found.capacity.standard_error > 0).all()
    assert set(found.attrs["by_parameter_standard_error"]) == set(found.by_parameter.parameter.values)
    assert found.attrs["total_standard_error"] > 0
    np.testing.assert_allclose(found.by_parameter.sum(), found.total, rtol=1e-9)
    assert found.table is None


def test_more_probes_come_until_the_error_is_reached() -> None:
    coarse, fine = (stochastic(rtol=rtol, num_probes="auto") for rtol in (0.1, 0.02))
    for found, rtol in ((coarse, 0.1), (fine, 0.02)):
        assert found.attrs["stopped_by"] == "rtol"
        assert found.attrs["relative_standard_error"] <= rtol
    assert fine.attrs["num_probes"] > coarse.attrs["num_probes"]
    assert fine.attrs["rounds"] > 1
    exact = dense().by(patches(4, 4))
    np.testing.assert_allclose(fine.by(patches(4, 4)), exact, rtol=4 * 0.02)


def test_several_ridges_from_one_run() -> None:
    ridges = [1e-3, 1e-1, 1e-2]
    found = measure(conv_net(), IMAGES, ridge=ridges, solver=Stochastic(num_probes=32, rtol=0.02))
    assert list(found) == sorted(ridges, reverse=True)
    for ridge, at_ridge in found.items():
        exact = dense(ridge)
        assert at_ridge.attrs["ridge"] == ridge
        assert abs(at_ridge.total - exact.total) < 5 * at_ridge.attrs["total_standard_error"]
        np.testing.assert_allclose(at_ridge.by(patches(4, 4)), exact.by(patches(4, 4)), rtol=0.1)
    assert found[1e-3].total > found[1e-2].total > found[1e-1].total


def test_a_generator_makes_it_repeatable_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    again, other = stochastic(), stochastic(4)
    np.testing.assert_array_equal(one().capacity, again.capacity)
    assert not np.array_equal(one().capacity, other.capacity)
    assert torch.equal(before, torch.random.get_rng_state())


def test_batches_do_not_change_the_answer() -> None:
    np.testing.assert_allclose(stochastic(batch_size=5).capacity, one().capacity, rtol=1e-6)


def test_single_precision_products_agree_with_double() -> None:
    choice = {"ridge": RIDGE, "solver": Stochastic(num_probes=16, rtol=0.001)}
    single = measure(conv_net().float(), IMAGES.float(), generator=torch.Generator().manual_seed(0), **choice)
    assert single.attrs["precision"] == "float32"
    assert one().attrs["precision"] == "float64"
    assert abs(single.total - dense().total) < 5 * single.attrs["total_standard_error"]
    double = stochastic(rtol=0.001)
    np.testing.assert_allclose(single.by(patches(4, 4)), double.by(patches(4, 4)), rtol=2e-3)  # the solves' own error


def test_metric_params_and_intercept_are_those_of_the_dense_solver() -> None:
    root = data(4, 4, seed=3)
    model = seeded_model(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    choice = {"metric": root @ root.T, "params": ["0.weight", "2.bias"], "intercept": False, "ridge": 0.01}
    exact = measure(model, data(20, 4), **choice)
    found = measure(model, data(20, 4), solver=Stochastic(num_probes=600, rtol=0.01), **choice)
    assert found.attrs["metric"] == "tensor"
    assert found.bias == 0
    z = (found.capacity - exact.capacity) / found.capacity.standard_error
    assert float(abs(z).max()) < 4


def test_a_solve_that_has_found_all_at_once_is_settled() -> None:
    """More probes than parameters fill their space in one iteration: fewer than a rate of convergence is read from."""
    few = {"params": ["2.bias"], "ridge": RIDGE}
    exact = measure(conv_net(), IMAGES, **few)
    estimate = measure(conv_net().float(), IMAGES.float(), solver=Stochastic(num_probes=32), **few)
    assert estimate.attrs["solve_error"] < 1e-9
    assert not estimate.attrs["notes"]
    error = estimate.attrs["total_standard_error"]
    assert error < 0.2 * exact.total
    assert abs(estimate.total - exact.total) < 4 * error


def test_random_combinations_of_outputs_stand_for_many() -> None:
    model = seeded_model(lambda: nn.Linear(3, 12))
    x = data(400, 3)
    found = measure(model, x, ridge=1e-3, solver=Stochastic(output_probes=6, num_probes=64))
    assert any("6 random combinations stand for the 12 outputs" in note for note in found.attrs["notes"])
    exact = measure(model, x, ridge=1e-3)
    np.testing.assert_allclose(found.total, exact.total, rtol=0.03)  # 400 x 6 x 4 rows for 48 parameters


def test_the_user_s_partition_decides_what_is_asked() -> None:
    choice = {"make": dense_net, "ridge": STRONGER, "rtol": 0.02, "num_probes": "auto"}
    by_row = stochastic(partition="row", **choice)
    by_half = stochastic(partition=np.arange(64).reshape(1, 8, 8) // 32, **choice)
    assert by_half.attrs["num_probes"] <= by_row.attrs["num_probes"]
    with pytest.raises(ValueError, match="the map has no axis 'depth'"):
        stochastic(partition="depth")


def test_the_spectrum_of_both_solvers_agrees() -> None:
    exact, found = dense().spectrum, one().spectrum
    trace = float((exact * exact.eigenvalue).sum())
    error = math.sqrt(2 * float((exact * exact.eigenvalue**2).sum()) / 4)  # of four probes
    assert abs(float((found * found.eigenvalue).sum()) - trace) < 3 * error
    assert float(found.sum()) == pytest.approx(dense().attrs["num_params"])
    total = float((exact * exact.eigenvalue / (exact.eigenvalue + RIDGE)).sum())
    assert total == pytest.approx(dense().total)
    lower, upper = one().attrs["spectrum_total"]
    slack = 4 * one().attrs["spectrum_total_standard_error"]
    assert lower - slack <= dense().total <= upper + slack


def test_the_spectrum_is_saved(tmp_path) -> None:
    found = one()
    found.save(tmp_path / "found.nc")
    loaded = Allocation.load(tmp_path / "found.nc")
    np.testing.assert_array_equal(loaded.spectrum, found.spectrum)
    np.testing.assert_array_equal(loaded.spectrum.eigenvalue, found.spectrum.eigenvalue)
    np.testing.assert_array_equal(loaded.capacity.standard_error, found.capacity.standard_error)


def test_a_spectrum_of_another_form_is_refused() -> None:
    exact = dense()
    parts = {"capacity": exact.capacity, "bias": exact.bias, "by_parameter": exact.by_parameter}
    with pytest.raises(ValueError, match="spectrum has axes"):
        Allocation(**parts, spectrum=exact.spectrum.drop_vars("eigenvalue"))
    with pytest.raises(ValueError, match="spectrum holds negative numbers"):
        Allocation(**parts, spectrum=-exact.spectrum)


def test_mean_eigenvalue_is_that_of_the_exact_spectrum() -> None:
    exact = float((dense().spectrum * dense().spectrum.eigenvalue).sum()) / dense().attrs["num_params"]  # rows are more
    assert mean_eigenvalue(conv_net(), IMAGES, num_probes=64) == pytest.approx(exact, rel=0.2)
    assert one().attrs["mean_eigenvalue"] == pytest.approx(exact, rel=0.4)


# ---- choice of the solver, time and memory


def test_auto_takes_the_dense_solver_where_it_fits() -> None:
    assert measure(conv_net(), IMAGES, ridge=RIDGE).attrs["solver"] == "dense"
    run = Run(max_bytes=0.7 * 8 * 12 * dense().attrs["num_params"] ** 2)
    solver = Auto(stochastic=Stochastic(num_probes=2))
    assert measure(conv_net(), IMAGES, ridge=RIDGE, solver=solver, run=run).attrs["solver"] == "stochastic"
    with pytest.raises(MemoryError, match="or give a ridge > 0, with which the stochastic solver takes over"):
        measure(conv_net(), IMAGES, run=run)


def test_out_of_time_is_said() -> None:
    found = stochastic(max_seconds=1e-6, num_probes="auto", rtol=0.001)
    assert found.attrs["num_probes"] == 2  # the least that it can do with
    assert any("max_seconds=1e-06 was not held: about" in note for note in found.attrs["notes"])
    assert found.attrs["stopped_by"] == "limit"
    assert any("the solves stopped early" in note for note in found.attrs["notes"])
    assert any("more than the 0.001 asked" in note for note in found.attrs["notes"])


@pytest.mark.parametrize("params", [10**6, 10**4])  # more than rows, and fewer
def test_what_would_not_fit_is_refused_before_it_starts(params) -> None:
    cost = ProductCost(elements=10**6, outputs=10, slots=1000, params=params, itemsize=4, examples=8)
    with pytest.raises(MemoryError, match=f"the stochastic solver for {params} parameters needs"):
        cost.plan(4, "auto", Budget(cost.vectors(2) - 1))
    with pytest.raises(MemoryError, match="one example with 10 constrained outputs"):
        cost.plan(4, "auto", Budget(cost.vectors(2) + cost.product(1, 1) - 1))
    plan = cost.plan(4, "auto", Budget(1.4e9))
    assert plan.num_bytes < 1.4e9
    assert plan.batch_size < 8
    with pytest.raises(MemoryError, match="a batch of 8 examples"):
        cost.plan(4, 8, Budget(1.4e9))


@pytest.mark.parametrize(("params", "elements", "slots"), [(10**5, 10**3, 30), (4000, 10**4, 800), (4 * 10**4, 100, 9)])
def test_plans_hold_all_that_they_count_within_the_budget(params, elements, slots) -> None:
    """What all probes see, the bases of blocks, and sensitivities that are held, are a part of it."""
    cost = ProductCost(elements, 10, slots, params, itemsize=4, examples=100, axes=(300, 1000, 10))
    plain = replace(cost, axes=())
    for num_bytes in (1.5e8, 3e8, 1e9, 1e10):
        plan, without = (one.plan(64, "auto", Budget(num_bytes)) for one in (cost, plain))
        assert plan.num_bytes <= num_bytes
        assert plan.probes <= without.probes
        assert 4 * 4 * plan.apart <= num_bytes / 2
        assert cost.vectors(plan.probes) + cost.bases + plan.batch_size * cost.rows(plan.probes) < plan.num_bytes


def test_a_batch_may_be_as_long_as_a_share_of_the_vectors_of_large_networks() -> None:
    """Each reads and writes as many numbers as there are parameters, so that few examples of it take longer."""
    large = ProductCost(elements=700_000, outputs=10, slots=12_289, params=11_000_000, itemsize=4, examples=32)
    small, room = replace(large, params=10_000, elements=30_000), Budget(2e10)
    one, more = (large.plan(4, "auto", room, share) for share in (0.0, 0.25))
    assert (one.batch_size, more.batch_size) == (1, 5)
    assert one.num_bytes < more.num_bytes < 1.25 * one.num_bytes
    assert large.product(more.batch_size, more.chunk) <= 0.25 * large.vectors(4)
    assert small.plan(4, "auto", room, 0.25) == small.plan(4, "auto", room)


def test_forecasts_are_written_down() -> None:
    attrs = one().attrs
    assert attrs["forecast_bytes"] > 0
    assert attrs["forecast_seconds"] > 0


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"ridge": 0.0}, r"needs a ridge > 0, got 0.0; with noise of variance s2"),
        ({"rtol": 0.0}, "rtol must lie between 0 and 1, got 0.0"),
        ({"num_probes": 1}, 'num_probes must be "auto" or an integer >= 2'),
        ({"max_seconds": 0}, "max_seconds must be > 0 or None, got 0"),
        ({"output_probes": 0}, "output_probes must be an integer >= 1 or None, got 0"),
    ],
)
def test_bad_settings_are_named(choice, match) -> None:
    with pytest.raises(ValueError, match=match):
        stochastic(**choice)


@pytest.mark.parametrize("solver", ["sparse", Markov()])
def test_unknown_solvers_are_named(solver) -> None:
    with pytest.raises(ValueError, match=r"solver must be one of auto, dense, stochastic, or settings .*, got "):
        measure(conv_net(), IMAGES, solver=solver)


@pytest.mark.parametrize(
    ("ridge", "solver", "match"),
    [
        ([], "auto", "ridge holds no number; pass at least one > 0"),
        ([0.1, 0.0], "auto", "needs a ridge > 0, got 0.0"),
        ([0.1, 0.2], "dense", "several ridges are for the stochastic solver"),
    ],
)
def test_several_ridges_are_checked(ridge, solver, match) -> None:
    with pytest.raises(ValueError, match=match):
        measure(conv_net(), IMAGES, ridge=ridge, solver=solver)


def test_ridge_from_noise_is_the_posterior_s() -> None:
    """Bayesian linear regression: effective parameters = p - trace(posterior covariance) / prior variance."""
    X, noise, prior = data(30, 5), 0.3, 2.0
    G = X.T @ X / 30
    posterior = torch.linalg.inv(X.T @ X / noise + torch.eye(5, dtype=torch.float64) / prior)
    effective = 5 - float(posterior.trace()) / prior
    ridge = ridge_from_noise(noise, 30, prior)
    s = torch.linalg.eigvalsh(G)
    assert float((s / (s + ridge)).sum()) == pytest.approx(effective, rel=1e-12)
    with pytest.raises(ValueError, match="prior_variance must be a finite number > 0, got 0"):
        ridge_from_noise(1.0, 10, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    found = measure(conv_net().cuda(), IMAGES.cuda(), ridge=RIDGE, solver=Stochastic(num_probes=32, rtol=0.02))
    assert abs(found.total - dense().total) < 5 * found.attrs["total_standard_error"]
    np.testing.assert_allclose(found.total, stochastic(rtol=0.02, num_probes=32).total, rtol=0.02)


# ---- its parts


def spd(n: int, seed: int = 0, condition: float = 100.0) -> Tensor:
    basis = torch.linalg.qr(data(n, n, seed=seed))[0]
    return (basis * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)) @ basis.T


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 30), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_block_conjugate_gradients_solve(n, k, seed) -> None:
    A, u = spd(n, seed), data(k, n, seed=seed + 1)
    now = begin(u, lambda r: r)
    energies = [now.energy]
    while len(now.directions) and now.iterations < 3 * n and float(now.residual.norm()) > 1e-12:
        now = step(now, lambda w: w @ A, lambda r: r)
        energies.append(now.energy)
    torch.testing.assert_close(now.solution @ A, u, rtol=0, atol=1e-7)
    assert all(b >= a for a, b in itertools.pairwise(energies))
    assert now.energy == pytest.approx(float((u * now.solution).sum()), rel=1e-8)


def test_the_error_of_a_solve_is_estimated() -> None:
    A, u = spd(200, condition=1e3), data(4, 200, seed=1)
    exact = torch.linalg.solve(A, u.T).T
    now = begin(u, lambda r: r)
    for _ in range(12):
        now = step(now, lambda w: w @ A, lambda r: r)
    missing = exact - now.solution
    true = float((missing @ A * missing).sum() / (exact @ A * exact).sum())
    assert 0.2 < now.error() / true < 5


def test_a_known_solution_needs_no_iteration() -> None:
    A, u = spd(20), data(3, 20, seed=1)
    v = torch.linalg.solve(A, u.T).T
    now = begin(u, lambda r: r, (v, v @ A))
    torch.testing.assert_close(now.solution, v)
    assert float(now.residual.norm()) < 1e-10


def test_dependent_directions_are_dropped() -> None:
    P = data(2, 10)
    basis = whitened(torch.cat([P, P.sum(0, keepdim=True), torch.zeros(1, 10, dtype=torch.float64)]))
    assert basis.shape == (2, 10)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))


def test_a_kronecker_block_is_inverted_exactly() -> None:
    """Where G is one Kronecker product, the basis diagonalises it."""
    left, right = spd(3, 1, 10), spd(4, 2, 10)
    G = torch.kron(left, right)
    root = torch.linalg.cholesky(G)
    draws = data(40_000, 12) @ root.T
    found = kronecker([(3, 4)], lambda stream: ([part] for part in draws.chunk(2)[stream].split(5000)))
    r = data(2, 12, seed=5)
    expected = torch.linalg.solve(G + 0.1 * torch.eye(12, dtype=torch.float64), r.T).T
    torch.testing.assert_close(InverseRoot(found, ridge=0.1).square(r), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("coordinates", ["log", "plain"])
def test_the_preconditioner_has_the_constraints_of_the_constant(coordinates: str) -> None:
    """All are the constant's part of G, in the coordinates of the solve; without an intercept there are none."""
    task = make_task(conv_net(), IMAGES[:5])
    examples = plan_examples(task, Stochastic(coordinates=coordinates))[0]
    expected = torch.zeros(examples.num_params, examples.num_params, dtype=torch.float64)
    for batch in examples():
        for output in range(examples.num_constrained):
            row = torch.zeros(1, examples.num_constrained, len(batch.x), examples.num_slots, dtype=torch.float64)
            row[:, output, :, -1] = 1
            found = torch.cat([*batch.each(row)], 1)
            expected += found.T @ found / 5
    rows = precondition(examples).rows
    torch.testing.assert_close(rows.T @ rows, expected)
    without = plan_examples(make_task(conv_net(), IMAGES[:5], intercept=False), Stochastic())[0]
    assert len(precondition(without).rows) == 0


def test_the_constants_constraints_save_iterations() -> None:
    """They are the largest directions of G, across all tensors, which blocks leave to the solver."""
    made = examples_of(conv_net(), IMAGES + 2)
    sums, ridge = sums_of(made), 1e-4

    def found_after(estimator: Perturbed) -> float:
        now = estimator.begin(estimator.draw(0, 2), ridge, None)
        for _ in range(8):
            now = estimator.step(now, estimator.product, ridge)
        return now.energy

    with_rows, without = Perturbed(sums, made), Perturbed(sums, made)
    vars(without)["preconditioner"] = replace(with_rows.preconditioner, rows=torch.zeros(0, made.num_params))
    best = Perturbed(sums, made)
    now = best.begin(best.draw(0, 2), ridge, None)
    for _ in range(60):
        now = best.step(now, best.product, ridge)
    lacking = [now.energy - found_after(estimator) for estimator in (with_rows, without)]
    assert 0 < lacking[0] < 0.7 * lacking[1]


def test_axes_keep_their_places_in_a_basis() -> None:
    bases = [torch.linalg.qr(data(n, n, seed=n))[0] for n in (2, 3)]
    block = KroneckerBlock((2, 3, 5), (*bases, None), torch.zeros(2, 3, 5, dtype=torch.float64))
    r = data(4, 30)
    torch.testing.assert_close(InverseRoot(Kronecker((block,)), ridge=1.0).square(r), r)
    turned = turn(r.reshape(4, 2, 3, 5), block.bases)
    torch.testing.assert_close(turned, torch.einsum("kabc,ax,by->kxyc", r.reshape(4, 2, 3, 5), *bases))


def test_long_axes_keep_their_own_basis() -> None:
    draws = data(5000, 8) * torch.linspace(1, 3, 8, dtype=torch.float64)
    found = kronecker([(2, 4)], lambda stream: iter([[draws]]), longest=3)
    assert found.blocks[0].bases[1] is None
    expected = 1 / torch.linspace(1, 3, 8, dtype=torch.float64) ** 2
    got = InverseRoot(found).square(torch.eye(8, dtype=torch.float64)).diagonal()
    torch.testing.assert_close(got, expected, rtol=0.3, atol=0.0)


def test_merged_axes() -> None:
    assert merged_axes(()) == (1,)
    assert merged_axes((5,)) == (5,)
    assert merged_axes((8, 4, 3, 3)) == (8, 36)
    assert merged_axes((512, 512, 3, 3)) == (512, 512, 9)
    assert merged_axes((10, 5000)) == (10, 5000)


def lanczos(A: Tensor, start: Tensor, steps: int):
    state = recurrence(start)
    for _ in range(steps):
        state = state.step(state.v @ A)
    return quadrature(state)


def test_gauss_and_radau_bracket_the_quadratic_form() -> None:
    A, start, ridge = spd(60, condition=1e4), data(3, 60, seed=2), 1e-3
    v = start / start.norm(dim=1, keepdim=True)
    share = A @ torch.linalg.inv(A + ridge * torch.eye(60, dtype=torch.float64))
    exact = 60 * float((v @ share * v).sum(1).mean())
    widths = []
    for steps in (4, 8, 16):
        total = lanczos(A, start, steps).total(ridge, 60)
        assert total.lower <= exact <= total.upper
        widths.append(total.upper - total.lower)
    assert widths[0] > widths[1] > widths[2]


def test_an_exhausted_space_ends_the_recurrence() -> None:
    A = torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
    found = lanczos(A, torch.ones(1, 3, dtype=torch.float64), 3)
    total = found.total(1.0, 3)
    assert total.upper == pytest.approx(0.5 + 0.5 + 2 / 3)
    assert total.lower == pytest.approx(total.upper)


def sphere(k: int, n: int, generator: torch.Generator) -> Tensor:
    z = torch.randn(k, n, generator=generator, dtype=torch.float64)
    return z * (n**0.5 / z.norm(dim=1, keepdim=True))


def test_an_estimate_knows_the_mean_and_the_variance_of_its_probes() -> None:
    """Against the closed form on the sphere, with probes enough to see it."""
    generator, n = torch.Generator().manual_seed(0), 8
    B = spd(n, condition=20)
    z = sphere(3000, n, generator).reshape(300, 10, n)
    none = torch.zeros(1, dtype=torch.float64)
    found = Estimate.of((z @ B @ z.mT)[:1], none)
    for block in z[1:]:
        found = found + Estimate.of((block @ B @ block.T)[None], none)
    mean = float(B.trace())
    variance = 2 * n / (n + 2) * (float(B.square().sum()) - mean**2 / n)
    assert found.probes == 3000
    assert found.pairs == 300 * 45
    assert float(found.mean) == pytest.approx(mean, abs=5 * math.sqrt(variance / 3000))
    assert float(found.variance(n)) == pytest.approx(variance, rel=0.1)
    seen = torch.stack([(one @ B * one).sum() for one in z.flatten(0, 1)]).var()
    assert float(seen) == pytest.approx(variance, rel=0.15)


@pytest.mark.proves("2", "kappa_i = trace(G^+ M_i) and its joint table", oracle="the dense solver")
def test_exact_solutions_in_every_direction_give_the_exact_answer() -> None:
    """As many orthogonal probes as parameters sum to the trace: slots, parts and the total."""
    rows, ridge = data(6, 5), 0.1
    G = rows.T @ rows
    A = G + ridge * torch.eye(5, dtype=torch.float64)
    u = torch.linalg.cholesky(A).T * 5**0.5  # sum uu' = 5 A, and w'u = 5 for every one
    w = torch.linalg.solve(A, u.T).T
    by_row = torch.einsum("rp,kp,rq,lq->rkl", rows, w, rows, w)
    inner = perturbed(w, u, data(5, 5), ridge, by_row, [2, 3])
    found = estimated(inner, inner, 1.0, False, torch.tensor([0, 0, 0, 1, 1, -1]))
    leverage = (rows @ torch.linalg.inv(A) * rows).sum(1)
    torch.testing.assert_close(found.slots.mean, leverage)
    torch.testing.assert_close(found.parts.mean, torch.stack([leverage[:3].sum(), leverage[3:5].sum()]))
    torch.testing.assert_close(found.total.mean[0], leverage.sum())


def test_products_sum_over_examples_in_one_place() -> None:
    """Two halves are the whole: what several processes add up."""
    with torch.no_grad():
        examples = examples_of(conv_net(), IMAGES)
        whole, *halves = map(sums_of, (examples, examples.shard(slice(0, 12)), examples.shard(slice(12, 24))))
        w = data(2, examples.num_params, seed=1)
        torch.testing.assert_close(sum(half.gram(w) for half in halves), whole.gram(w))
        torch.testing.assert_close(sum(half.noise(0, 2) for half in halves), whole.noise(0, 2))
        first, second = (list(half.inner(w, w[:1])) for half in halves)
        for a, b, both in zip(first, second, whole.inner(w, w[:1]), strict=True):
            torch.testing.assert_close(a + b, both)


def test_one_pass_gives_products_and_their_inner_products() -> None:
    with torch.no_grad():
        sums = sums_of(replace(examples_of(conv_net(), IMAGES), vectors=2))
        w, others = data(3, sums.examples.num_params, seed=1), data(2, sums.examples.num_params, seed=2)
        product, inner, other = sums.inner(w, others)
        assert torch.equal(product, sums.gram(w))
        for vectors, found in ((w, inner), (others, other)):
            rows = sums.examples.by_slot(sums.push(vectors))
            torch.testing.assert_close(found, rows @ rows.mT)
        assert list(sums.inner(w, w[:0]))[2].shape == (65, 0, 0)


def test_noise_has_the_covariance_of_the_constraints() -> None:
    with torch.no_grad():
        made = sums_of(replace(examples_of(seeded_model(lambda: nn.Linear(2, 1)), data(5, 2)), vectors=20_000))
        w = torch.eye(3, dtype=torch.float64)
        drawn = made.noise(0, 20_000)
    torch.testing.assert_close(drawn.T @ drawn / 20_000, made.gram(w), rtol=0.05, atol=0.05)


def test_squares_are_drawn_towards_what_all_share_and_no_further() -> None:
    """Of B = share x (a projection): nearer to tr B^2 from 3 pairs, as they were from 10^6 that know each share."""
    generator = torch.Generator().manual_seed(0)
    shares = 0.2 + 0.05 * torch.randn(200, generator=generator, dtype=torch.float64)
    ranks = torch.arange(200, dtype=torch.float64) % 7 + 5
    sizes, truth = shares * ranks, shares.square() * ranks

    def found(pairs: int, number: int = 200) -> tuple[Tensor, Tensor]:
        chance = torch.randn(pairs, 200, generator=generator, dtype=torch.float64).square().mean(0)
        raw = Estimate(sizes, truth * chance * pairs, torch.zeros(200), torch.zeros(200), 1, pairs)
        return raw.squares / pairs, raw.drawn_together(number).squares / pairs

    raw, drawn = found(3)
    assert float((drawn - truth).square().mean()) < 0.2 * float((raw - truth).square().mean())
    assert float(drawn.mean()) == pytest.approx(float(raw.mean()), rel=0.02)
    raw, drawn = found(100_000)
    torch.testing.assert_close(drawn, raw, rtol=2e-3, atol=0.0)
    raw, drawn = found(3, 100)
    assert bool((drawn[:100] != raw[:100]).all())
    assert torch.equal(drawn[100:], raw[100:])


def test_squares_are_no_larger_than_eigenvalues_of_one_allow() -> None:
    one = Estimate(torch.tensor([4.0, 0.0, 2.0]), torch.tensor([90.0, 0.0, 45.0]), torch.zeros(3), torch.zeros(3), 2, 3)
    torch.testing.assert_close(one.drawn_together(3).squares, torch.tensor([6.0, 0.0, 3.0]))


@pytest.mark.parametrize("probes", [3, 200])
def test_a_single_variance_is_between_what_pairs_tell_and_what_eigenvalues_allow(probes) -> None:
    """Three pairs that happen to be orthogonal tell of no variance: the bound counts as two more."""
    n = 40
    B = torch.diag(torch.linspace(0, 1, n, dtype=torch.float64))
    z = sphere(probes, n, torch.Generator().manual_seed(0))
    inner = (z @ B @ z.mT)[None]
    found = Estimate.of(inner * torch.eye(probes) if probes == 3 else inner, torch.zeros(1, dtype=torch.float64))
    bound = (found.mean - found.mean.square() / n) * 2 / (1 + 2 / n)
    if probes == 3:
        torch.testing.assert_close(found.bounded_variance(n), bound * 2 / 5)
    else:
        assert float(found.bounded_variance(n)) == pytest.approx(float(found.variance(n)), rel=0.01)


def test_students_factor() -> None:
    """By the closed form of the quantiles of one and two degrees of freedom."""
    assert students_factor(1) * 1.959964 == pytest.approx(math.tan(math.pi * 0.475), rel=1e-6)
    assert students_factor(2) * 1.959964 == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-6)
    assert students_factor(10**6) == pytest.approx(1, rel=1e-5)
    one = Estimate(torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2), 2, 1)
    torch.testing.assert_close(one.widened().variance(math.inf), one.variance(math.inf) * students_factor(1) ** 2)
