"""Architectures, processes, the best filter and training to the optimum."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from capalloc._model.problem import prepare
from capalloc.linear import (
    autoregression,
    co2,
    dense_filter,
    dilated_stack,
    empirical,
    fractional_noise,
    linear_capacity,
    model_jacobian,
    pooling_hierarchy,
    prediction,
    recurrent_filter,
    sinusoids,
    stacked_convolutions,
    strided_hierarchy,
    sunspots,
    train,
    white_noise,
)
from capalloc.linear.of_model import linear_map
from lacking import lack


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def weights(model: nn.Module, length: int) -> np.ndarray:
    problem = prepare(model, torch.zeros(1, length, dtype=torch.float64))
    return linear_map(problem, dict(problem.params))[0].detach().numpy()


# architectures


def test_stacked_convolutions_convolve_their_kernels():
    model = stacked_convolutions(9, seed(), depth=3)
    kernels = [layer.weight.detach().numpy().ravel() for layer in model.layers]
    w = kernels[0]
    for kernel in kernels[1:]:
        w = np.convolve(w, kernel)
    np.testing.assert_allclose(weights(model, 9), np.pad(w, (2, 0)), atol=1e-14)
    assert linear_capacity(model_jacobian(model, [9])).total == pytest.approx(7)


def test_the_dilated_stack_is_a_kronecker_product():
    model = dilated_stack(9, seed())
    w = np.ones(1)
    for layer in model.layers:
        w = np.kron(layer.weight.detach().numpy().ravel(), w)
    np.testing.assert_allclose(weights(model, 9), np.pad(w, (1, 0)), atol=1e-14)
    tree = strided_hierarchy(9, seed())
    for ours, theirs in zip(tree.layers, model.layers, strict=True):
        ours.weight.data = theirs.weight.data
    np.testing.assert_allclose(weights(tree, 9), weights(model, 9), atol=1e-14)


def test_sharing_is_the_same_weights_everywhere():
    shared, free = (strided_hierarchy(9, seed(), kernel=3, channels=2, shared=s) for s in (True, False))
    for ours, theirs in zip(free.layers, shared.layers, strict=True):
        ours.weight.data = theirs.weight.detach().expand_as(ours.weight).clone()
    np.testing.assert_allclose(weights(free, 9), weights(shared, 9), atol=1e-14)
    assert free.layers[0].weight.shape == (3, 2, 1, 3)


def test_pooling_averages_pairs():
    model = pooling_hierarchy(4, seed())
    kernel = model.layers[0].weight.detach().numpy().ravel()
    np.testing.assert_allclose(weights(model, 4), np.convolve(kernel, [0.5, 0.5]), atol=1e-14)
    deep = pooling_hierarchy(30, seed(), channels=2, shared=False)
    assert deep.field == 22
    assert not weights(deep, 30)[:8].any()
    plain = pooling_hierarchy(10, seed(), kernel=1)
    np.testing.assert_allclose(weights(plain, 10)[2:], weights(plain, 10)[2], atol=1e-14)


def test_a_recurrence_has_two_parameters_a_unit():
    model = recurrent_filter(20, seed(), units=3)
    A, b, c = (p.detach().numpy() for p in (model.transition, model.write, model.read))
    expected = [c @ np.linalg.matrix_power(A, lag) @ b for lag in range(20)]
    np.testing.assert_allclose(weights(model, 20)[::-1], expected, atol=1e-12)
    assert linear_capacity(model_jacobian(model, [20])).total == pytest.approx(6, abs=1e-8)


def test_a_dense_filter_spends_one_on_every_lag():
    a = linear_capacity(model_jacobian(dense_filter(5, seed()), [5], lags=True))
    assert list(a.capacity["lag"].values) == [5, 4, 3, 2, 1]
    np.testing.assert_allclose(a.capacity, 1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: dense_filter(0, seed()), "length must be at least 1"),
        (lambda: stacked_convolutions(4, seed()), "reach over 17 values"),
        (lambda: stacked_convolutions(4, seed(), depth=0), "depth must be at least 1"),
        (lambda: dilated_stack(1, seed()), "at least the kernel, 2"),
        (lambda: dilated_stack(4, seed(), channels=0), "channels must be at least 1"),
        (lambda: strided_hierarchy(4, seed(), kernel=1), "kernel must be at least 2"),
        (lambda: pooling_hierarchy(3, seed()), "length must be at least 4"),
        (lambda: recurrent_filter(4, seed(), units=0), "units must be at least 1"),
    ],
)
def test_sizes_that_make_no_architecture(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# processes


@pytest.mark.parametrize("hurst", [0.1, 0.5, 0.75, 0.95])
def test_fractional_noise_matches_its_closed_form(hurst):
    r = fractional_noise(hurst, variance=2.0).autocovariance(200_001)
    with mpmath.workdps(50):
        for lag in (0, 1, 2, 57, 100, 101, 5000, 200_000):
            h, e = mpmath.mpf(lag), 2 * mpmath.mpf(hurst)
            exact = (h + 1) ** e - 2 * h**e + abs(h - 1) ** e  # variance 2, halved
            assert float(r[lag]) == pytest.approx(float(exact), rel=1e-9, abs=1e-12)
    if hurst != 0.5:
        tail = 2 * hurst * (2 * hurst - 1) * 200_000.0 ** (2 * hurst - 2)
        assert float(r[-1]) == pytest.approx(tail, rel=1e-4)
    assert float(Increments(hurst).variance(9)) == pytest.approx(9 ** (2 * hurst))


class Increments:
    """Sums of m increments of fractional Brownian motion have variance m^2H."""

    def __init__(self, hurst: float) -> None:
        self.process = fractional_noise(hurst)

    def variance(self, m: int) -> torch.Tensor:
        r = self.process.autocovariance(m)
        return torch.from_numpy(scipy.linalg.toeplitz(r)).sum()


def test_an_autoregression_obeys_its_equation():
    a = [0.4, -0.2, 0.3]
    r = autoregression(a, variance=1.5).autocovariance(50).numpy()
    for h in range(3, 50):
        assert r[h] == pytest.approx(sum(a[k] * r[h - 1 - k] for k in range(3)), abs=1e-12)
    assert r[0] - sum(a[k] * r[k + 1] for k in range(3)) == pytest.approx(1.5)
    np.testing.assert_allclose(autoregression([0.9]).autocovariance(6), 0.9 ** np.arange(6) / (1 - 0.81))
    assert len(autoregression(a).autocovariance(2)) == 2


@pytest.mark.parametrize(
    "process",
    [white_noise(2.0), autoregression([0.6, -0.3]), fractional_noise(0.8), fractional_noise(0.2)],
    ids=lambda process: process.name,
)
def test_samples_have_the_autocovariance(process):
    length, paths = 16, 4000
    x = torch.stack([process.sample(length, seed(k)) for k in range(paths)])
    r = process.autocovariance(length)
    S = torch.from_numpy(scipy.linalg.toeplitz(r))
    error = 5 * ((S.diagonal()[:, None] * S.diagonal() + S.square()) / paths).sqrt()
    assert bool(((x.T @ x / paths - S).abs() < error).all())
    assert torch.equal(process.sample(8, seed(3)), process.sample(8, seed(3)))


def test_sinusoids_and_empirical_autocovariances():
    r = sinusoids([0.1], amplitudes=[2.0], noise=0.5).autocovariance(4)
    np.testing.assert_allclose(r, 2 * np.cos(0.2 * np.pi * np.arange(4)) + 0.5 * (np.arange(4) == 0))
    x = np.array([1.0, 3.0, 2.0, 6.0])
    c = x - 3
    r = empirical("four", x).autocovariance(6)
    np.testing.assert_allclose(
        r, [c @ c / 4, c[1:] @ c[:-1] / 4, c[2:] @ c[:-2] / 4, c[3] * c[0] / 4, 0, 0], atol=1e-14
    )


@pytest.mark.parametrize(("make", "period"), [(sunspots, 11), (co2, 52)])
def test_real_series_have_their_cycle(make, period):
    pytest.importorskip("statsmodels")
    r = make().autocovariance(2 * period).numpy()
    assert r[0] == pytest.approx(1)
    around = r[period // 2 :]
    assert abs(int(around.argmax()) + period // 2 - period) <= 1


def test_without_statsmodels_the_error_says_what_to_install(monkeypatch):
    lack(monkeypatch, "statsmodels")
    with pytest.raises(ModuleNotFoundError, match=r"the sunspots series needs .*capalloc\[study\]"):
        sunspots()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: white_noise(0), "variance must be"),
        (lambda: autoregression([]), "coefficients must be"),
        (lambda: autoregression([1.0]), "not stationary"),
        (lambda: autoregression([0.5], variance=-1), "variance must be"),
        (lambda: fractional_noise(1.0), "hurst must lie strictly"),
        (lambda: fractional_noise(0.0), "hurst must lie strictly"),
        (lambda: sinusoids([]), "0 frequencies"),
        (lambda: sinusoids([0.1], [1, 2]), "one amplitude for each"),
        (lambda: sinusoids([0.1], noise=0), "noise must be"),
        (lambda: empirical("flat", [1.0, 1.0]), "two different values"),
        (lambda: white_noise().sample(0, seed()), "length must be"),
        (lambda: empirical("short", [1.0, -1.0, 1.0]).sample(2, seed()), "negative eigenvalue"),
        (lambda: prediction(white_noise(), 0), "lags must be"),
        (lambda: prediction(white_noise(), 1, 0), "steps must be"),
        (lambda: train(nn.Linear(3, 2, bias=False), prediction(white_noise(), 3)), "has 2 outputs"),
        (lambda: train(nn.Linear(3, 1, bias=False), prediction(white_noise(), 4)), "does not accept inputs"),
        (lambda: train(nn.Linear(3, 1), prediction(white_noise(), 3), 0), "max_iterations"),
    ],
)
def test_bad_tasks_are_clear_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# prediction


@pytest.mark.parametrize("steps", [1, 3])
def test_the_best_filter_solves_the_normal_equations(steps):
    process = fractional_noise(0.85)
    task = prediction(process, 40, steps)
    r = process.autocovariance(60).numpy()
    c = np.array([r[lag + steps - 1] for lag in range(40, 0, -1)])
    exact = np.linalg.solve(scipy.linalg.toeplitz(r[:40]), c)
    np.testing.assert_allclose(task.optimal_filter, exact, atol=1e-12)
    loss = r[0] - c @ exact
    assert float(task.loss(task.optimal_filter)) == pytest.approx(loss, abs=1e-12)
    assert task.excess(torch.zeros(40, dtype=torch.float64)) == pytest.approx(c @ exact, abs=1e-12)


@pytest.mark.parametrize("build", [dense_filter, lambda n, g: dilated_stack(n, g, channels=3)])
def test_a_trained_filter_recovers_the_coefficients(build):
    a = [0.6, -0.3]
    model = build(8, seed())
    before = [p.detach().clone() for p in model.parameters()]
    run = train(model, prediction(autoregression(a), 8))
    np.testing.assert_allclose(run.filter.flip(0), [*a, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert run.loss == pytest.approx(1.0, abs=1e-10)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    np.testing.assert_allclose(weights(run.model, 8), run.filter, atol=1e-12)


def test_training_ends_where_the_gradient_vanishes():
    for model in (stacked_convolutions(20, seed(), depth=3), recurrent_filter(20, seed(1), units=2)):
        task = prediction(fractional_noise(0.9), 20)
        run = train(model, task)
        assert run.converged
        assert run.gradient < 1e-6
        assert 0 < task.excess(run.filter) < 0.1
        assert run.loss == pytest.approx(float(task.loss(task.optimal_filter)) + task.excess(run.filter), abs=1e-12)


def test_training_that_is_cut_short_says_so():
    run = train(dilated_stack(16, seed(), channels=2), prediction(fractional_noise(0.9), 16), max_iterations=1)
    assert not run.converged


def test_a_single_precision_model_trains_in_double():
    run = train(nn.Linear(4, 1, bias=False), prediction(autoregression([0.5]), 4))
    assert run.filter.dtype == torch.float64
    np.testing.assert_allclose(run.filter, [0, 0, 0, 0.5], atol=1e-8)
