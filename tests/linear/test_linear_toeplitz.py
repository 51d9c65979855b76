"""FFT answers of stationary metrics against dense ones, and their growth."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.linalg
import torch

from capalloc.app.studies.linear_study import one_thread
from capalloc.linear import Stationary, autoregression, fractional_noise, linear_capacity, sinusoids
from capalloc.linear.rational_root import square_root_nodes
from capalloc.linear.toeplitz import Toeplitz, innovations_product

N = 300


@pytest.fixture(autouse=True)
def single_thread():
    """Threads cost more than they bring at this size, all the more beside other tests."""
    with one_thread():
        yield


PROCESSES = {
    "AR(2)": autoregression([1.6, -0.8]),
    "long memory": fractional_noise(0.95),
    "short memory": fractional_noise(0.1),
    "sinusoids": sinusoids([0.051, 0.2], noise=1e-3),
}


def columns(n: int, p: int = 4) -> np.ndarray:
    t = np.arange(n)
    return np.stack([np.random.default_rng(0).normal(size=n), 0.99**t, np.cos(0.1 * t), 1 / (1 + t)], 1)[:, :p]


@pytest.mark.proves("1", "stationary signals", oracle="dense linear algebra")
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("root", ["symmetric", "cholesky"])
def test_fft_answers_equal_dense_ones(name, root):
    r = PROCESSES[name].autocovariance(N)
    S, J = scipy.linalg.toeplitz(r), columns(N)
    metric = Stationary(r)
    if root == "symmetric":
        values, vectors = np.linalg.eigh(S)
        R = vectors * np.sqrt(values) @ vectors.T
    else:
        R = np.linalg.cholesky(S)
    C = metric.whiten(torch.from_numpy(J), root)
    np.testing.assert_allclose(C, R.T @ J, atol=1e-8)
    fast, dense = linear_capacity(J, metric, root=root), linear_capacity(J, S, root=root)
    np.testing.assert_allclose(fast.capacity, dense.capacity, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_products_and_solves(monkeypatch, name):
    r = PROCESSES[name].autocovariance(N)
    S, T = scipy.linalg.toeplitz(r), Toeplitz(r)
    V = torch.from_numpy(columns(N).T.copy())
    np.testing.assert_allclose(T.multiply(V), V.numpy() @ S, atol=1e-9)
    exact = np.linalg.solve(S, V.numpy().T).T
    scale = abs(exact).max()
    np.testing.assert_allclose(T.inverse_product(V), exact, atol=1e-8 * scale)
    np.testing.assert_allclose(T.solve(V[0]), scipy.linalg.solve_toeplitz(r.numpy(), V[0].numpy()), atol=1e-8 * scale)
    monkeypatch.setattr("capalloc.linear.toeplitz.FFT_NUMBERS", 1)  # one vector at a time
    np.testing.assert_allclose(T.multiply(V), V.numpy() @ S, atol=1e-9)
    np.testing.assert_allclose(T.inverse_product(V), exact, atol=1e-8 * scale)
    low, high = T.spectrum_bounds()
    values = np.linalg.eigvalsh(S)
    assert low <= values[0] * (1 + 1e-9)
    assert high >= values[-1] * (1 - 1e-9)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_short_windows(size):
    r = 0.5 ** np.arange(size)
    for root in ("symmetric", "cholesky"):
        fast = linear_capacity(np.eye(size)[:, :1], Stationary(r), root=root)
        dense = linear_capacity(np.eye(size)[:, :1], scipy.linalg.toeplitz(r), root=root)
        np.testing.assert_allclose(fast.capacity, dense.capacity, atol=1e-12)


@pytest.mark.parametrize(("low", "tolerance"), [(1.0, 1e-13), (1e-4, 1e-11), (1e-7, 1e-9)])
def test_the_quadrature_of_the_square_root_converges_geometrically(low, tolerance):
    x = np.geomspace(low, 1, 200)
    nodes = square_root_nodes(low, 1.0)
    found = x * sum(weight / (x + shift) for shift, weight in nodes)
    np.testing.assert_allclose(found, np.sqrt(x), rtol=tolerance)
    errors = []
    for digits in (3, 6):
        few = x * sum(weight / (x + shift) for shift, weight in square_root_nodes(low, 1.0, 10.0**-digits))
        errors.append(abs(few / np.sqrt(x) - 1).max())
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5


def test_innovations_of_an_autoregression_take_linear_time():
    """The columns of L past the order are shifts: nothing but a convolution is left."""
    n = 200_000
    r = autoregression([0.5, -0.3]).autocovariance(n)
    J = torch.zeros(n, 1, dtype=torch.float64)
    J[-1] = 1.0
    start = time.process_time()
    C = innovations_product(r, J)
    assert time.process_time() - start < 10
    impulse = [1.0, 0.5, 0.5**2 - 0.3]  # what an innovation does to the values after it
    np.testing.assert_allclose(C.flip(0)[:3, 0], impulse, atol=1e-10)


@pytest.mark.slow
def test_a_million_lags():
    grown = {}
    for n in (10**5, 10**6):
        J, r = columns(n, 2), fractional_noise(0.8).autocovariance(n)
        start = time.process_time()
        a = linear_capacity(J, Stationary(r))
        grown[n] = time.process_time() - start
        assert a.total == pytest.approx(2)
    assert grown[10**6] < 40 * grown[10**5]
