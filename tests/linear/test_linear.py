"""Linear capacity: leverage scores, invariances, additivity, metrics, bases and errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capalloc.linear import (
    Covariance,
    LowRankPlusDiagonal,
    Stationary,
    Variances,
    dilated_stack,
    estimate_covariance,
    fourier_basis,
    linear_capacity,
    model_jacobian,
    orthonormal_basis,
    principal_basis,
)
from capalloc.partitions import bands
from capalloc.results.allocation import Allocation

SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def orthogonal(n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(rng(seed).normal(size=(n, n)))[0]


def covariance(n: int, seed: int = 0) -> np.ndarray:
    root = rng(seed).normal(size=(n, n))
    return root @ root.T + 0.1 * np.eye(n)


def assert_svd_map(allocation: Allocation, C: np.ndarray, n: int, atol: float = 1e-10) -> None:
    """Leverage scores of C, rows (inputs, outputs), by a plain SVD."""
    U, s, _ = np.linalg.svd(C, full_matrices=False)
    U = U[:, s > max(C.shape) * np.finfo(float).eps * s[0]]
    np.testing.assert_allclose(allocation.capacity, np.square(U).sum(1).reshape(n, -1).sum(1), atol=atol)
    assert allocation.total == pytest.approx(U.shape[1], abs=atol * n)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e200, 1e300])
def test_units_beyond_the_range_of_squares_change_nothing(unit):
    J = rng().normal(size=(6, 4))
    np.testing.assert_allclose(linear_capacity(unit * J).capacity, linear_capacity(J).capacity, rtol=1e-12)
    assert linear_capacity(0 * J).total == 0


@pytest.mark.proves("1", "kappa_i is a leverage score of C", oracle="an orthonormal basis of scipy, the hat matrix")
def test_identity_gives_scipys_leverage_scores():
    J = rng().normal(size=(12, 4))
    Q = scipy.linalg.orth(J)
    a = linear_capacity(J)
    np.testing.assert_allclose(a.capacity, np.square(Q).sum(1), atol=1e-13)
    hat = J @ np.linalg.inv(J.T @ J) @ J.T
    np.testing.assert_allclose(a.capacity, hat.diagonal(), atol=1e-13)
    assert a.total == pytest.approx(4)


@pytest.mark.proves("1", "invariant under a change of parameters", oracle="the same constraints in other parameters")
@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_invariant_under_a_change_of_parameters(seed):
    g = rng(seed)
    J, S = g.normal(size=(9, 4)), covariance(9, seed)
    change = g.normal(size=(4, 4)) + 3 * np.eye(4)  # d theta / d phi
    a, b = linear_capacity(J, S), linear_capacity(J @ change, S)
    np.testing.assert_allclose(a.capacity, b.capacity, atol=1e-9)


@pytest.mark.proves("1", "of a subspace: trace(P_C P_U)", oracle="the same model in rotated inputs")
@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_capacity_turns_with_the_inputs(seed):
    J, S, R = rng(seed).normal(size=(8, 3)), covariance(8, seed), orthogonal(8, seed + 1)
    turned = linear_capacity(R @ J, R @ S @ R.T, basis=orthonormal_basis(R))  # x -> R x
    np.testing.assert_allclose(turned.capacity, linear_capacity(J, S).capacity, atol=1e-9)


@pytest.mark.proves(
    "1",
    "additive over orthogonal partitions",
    oracle="projectors by pseudo-inverse",
)
@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 11))
def test_additive_on_random_orthogonal_partitions(seed, cut):
    n, p = 12, 5
    J, S, B = rng(seed).normal(size=(n, p)), covariance(n, seed), orthogonal(n, seed)
    whole = linear_capacity(J, S, basis=orthonormal_basis(B))
    parts = whole.by(np.arange(n) < cut)
    assert float(parts.sum()) == pytest.approx(p, abs=1e-10)
    C = scipy.linalg.sqrtm(S).real @ J
    P = C @ np.linalg.pinv(C)
    U = B[:, :cut]
    assert float(parts.sel(part=True)) == pytest.approx(np.trace(P @ U @ U.T), abs=1e-9)
    assert float(parts.sel(part=True)) <= min(cut, p) + 1e-12
    some = linear_capacity(J, S, basis=orthonormal_basis(U)).capacity
    assert some["component"].values[-1] == "rest"
    assert float(some[-1]) == pytest.approx(float(parts.sel(part=False)), abs=1e-10)


@pytest.mark.proves("1", "with ridge: effective degrees of freedom", oracle="eigenvalues, the ridge hat matrix")
@pytest.mark.parametrize("ridge", [1e-6, 0.3, 50.0])
def test_ridge_total_is_the_effective_degrees_of_freedom(ridge):
    J, S = rng().normal(size=(10, 6)), covariance(10)
    s = np.linalg.eigvalsh(J.T @ S @ J)
    a = linear_capacity(J, S, ridge=ridge)
    assert a.total == pytest.approx((s / (s + ridge)).sum(), rel=1e-10)
    C = scipy.linalg.sqrtm(S).real @ J
    hat = C @ np.linalg.inv(C.T @ C + ridge * np.eye(6)) @ C.T
    np.testing.assert_allclose(a.capacity, hat.diagonal(), atol=1e-10)


@pytest.mark.proves("1", "several outputs", oracle="singular vectors of numpy")
def test_several_outputs_sum_and_axes_stay():
    values = rng().normal(size=(3, 4, 2, 7))
    J = xr.DataArray(values, dims=("row", "column", "outputs", "params"), coords={"row": [5, 6, 7]})
    a = linear_capacity(J)
    assert_svd_map(
        Allocation(a.capacity.stack(input=["row", "column"]), 0.0, a.by_parameter), values.reshape(24, 7), 12
    )
    assert a.capacity.dims == ("row", "column")
    assert list(a.capacity["row"].values) == [5, 6, 7]
    assert float(a.by_parameter.max()) <= 1 + 1e-12
    swapped = linear_capacity(J.transpose("outputs", "column", "row", "params"))
    np.testing.assert_allclose(swapped.capacity.T, a.capacity, atol=1e-12)


@pytest.mark.proves("1", "kappa = rank C", oracle="matrices of known rank")
def test_more_parameters_than_inputs_and_rank_deficiency():
    J = rng().normal(size=(4, 9))
    np.testing.assert_allclose(linear_capacity(J).capacity, 1.0, atol=1e-12)
    low = rng().normal(size=(8, 2)) @ rng(1).normal(size=(2, 5))
    assert linear_capacity(low).attrs["rank"] == 2
    single = low.astype(np.float32)
    assert linear_capacity(single).attrs["rank"] == 2  # rounding of float32 makes no parameter
    assert linear_capacity(np.zeros((3, 2))).total == 0


@pytest.mark.parametrize(("levels", "channels"), [(3, 1), (6, 1), (4, 2)])
def test_the_dilated_stack_has_its_independent_parameters(levels, channels):
    model = dilated_stack(2**levels, torch.Generator().manual_seed(1), channels=channels)
    J = model_jacobian(model, [2**levels], lags=True)
    a = linear_capacity(J)
    if channels == 1:  # kernels of 2, one scale shared by all but one of them
        assert a.total == pytest.approx(levels + 1, abs=1e-9)
    # ... minus the dimension of what leaves the filter as it is
    assert a.attrs["rank"] == np.linalg.matrix_rank(J.squeeze("outputs").values)
    assert_svd_map(a, J.values[:, 0], 2**levels)
    assert a.attrs["num_params"] == sum(p.numel() for p in model.parameters())


@pytest.mark.proves("1", "kappa = rank C", oracle="a count of weights less symmetries")
def test_independent_parameters_of_two_channels():
    """1 -> 2 -> 2 -> 1, kernels of 2: 16 weights less GL(2) at two hidden layers, 4 each."""
    model = dilated_stack(8, torch.Generator().manual_seed(0), channels=2)
    assert linear_capacity(model_jacobian(model, [8])).total == pytest.approx(8, abs=1e-9)
    unshared = dilated_stack(8, torch.Generator().manual_seed(0), shared=False)
    assert linear_capacity(model_jacobian(unshared, [8])).total == pytest.approx(8, abs=1e-9)  # 14 - 6 hidden units


@pytest.mark.proves("1", "metrics a user may pass for S", oracle="dense roots and singular vectors of scipy")
@pytest.mark.parametrize("root", ["symmetric", "cholesky"])
def test_every_metric_agrees_with_its_dense_covariance(root):
    n = 40
    J = rng().normal(size=(n, 2, 5))
    variances, factors = rng(1).uniform(0.5, 2, n), rng(2).normal(size=(n, 3))
    r = 0.8 ** np.arange(n)
    same = {
        Variances(variances): np.diag(variances),
        Covariance(covariance(n)): covariance(n),
        LowRankPlusDiagonal(variances, factors): np.diag(variances) + factors @ factors.T,
        Stationary(r): scipy.linalg.toeplitz(r),
    }
    for metric, S in same.items():
        R = scipy.linalg.sqrtm(S).real if root == "symmetric" else np.linalg.cholesky(S)
        C = np.einsum("ij,iop->jop", R, J).reshape(2 * n, -1)
        assert_svd_map(linear_capacity(J, metric, root=root), C, n, atol=1e-8)
        w = torch.from_numpy(rng(3).normal(size=n))
        np.testing.assert_allclose(metric.multiply(w), S @ w.numpy(), atol=1e-10)


@pytest.mark.proves("1", "symmetric and Cholesky root", oracle="the innovation variance of a Markov process")
def test_the_root_moves_credit_and_not_the_total():
    r = 0.9 ** np.arange(6)
    J = np.zeros((6, 1))
    J[-1] = 1.0  # the newest value alone
    symmetric, innovations = (linear_capacity(J, Stationary(r), root=root) for root in ("symmetric", "cholesky"))
    assert symmetric.total == pytest.approx(innovations.total)
    np.testing.assert_allclose(innovations.capacity[-1], 1 - 0.81)  # what is new in it
    assert float(symmetric.capacity[-1]) > 0.5


@pytest.mark.proves("1", "the Fourier basis is a partition of its own", oracle="filters of known frequency")
def test_fourier_bands_find_the_band_of_a_filter():
    n = 64
    t = np.arange(n)
    J = np.stack([np.cos(2 * np.pi * 5 / n * t), np.sin(2 * np.pi * 20 / n * t)], 1)
    a = linear_capacity(J, basis=fourier_basis(n))
    parts = a.by(bands([0.2]))
    np.testing.assert_allclose(parts, [1, 1], atol=1e-12)
    np.testing.assert_allclose(a.capacity.sel(frequency=[5 / 64, 20 / 64]), 1, atol=1e-12)
    for size in (1, 2, 7, 8):  # a complete basis: sines and cosines of an even and an odd window
        full = linear_capacity(np.eye(size), basis=fourier_basis(size))
        assert full.total == pytest.approx(size)
        pairs = [1.0 if f in (0.0, 0.5) else 2.0 for f in full.capacity["frequency"].values]
        np.testing.assert_allclose(full.capacity, pairs, atol=1e-12)


def test_principal_components_are_eigenvectors_in_order():
    S = covariance(6)
    vectors = np.linalg.eigh(S).eigenvectors
    a = linear_capacity(vectors[:, [5]], S, basis=principal_basis(S))
    np.testing.assert_allclose(a.capacity, [1, 0, 0, 0, 0, 0], atol=1e-10)
    few = linear_capacity(rng().normal(size=(6, 3)), S, basis=principal_basis(S, 2))
    assert list(few.capacity["component"].values) == ["0", "1", "rest"]
    assert few.total == pytest.approx(3)


def test_an_allocation_in_a_basis_survives_a_file(tmp_path):
    a = linear_capacity(rng().normal(size=(8, 3)), basis=fourier_basis(8))
    a.save(tmp_path / "a.nc")
    xr.testing.assert_identical(Allocation.load(tmp_path / "a.nc").by(bands([0.25])), a.by(bands([0.25])))


def test_jacobian_of_any_torch_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Flatten(), nn.Linear(12, 2, bias=False))
    J = model_jacobian(model, [2, 3, 3])
    assert J.dims == ("channel", "row", "column", "outputs", "params")
    assert J["params"].values[0] == "0.weight[0, 0, 0, 0]"
    step, name = 1e-3, "2.weight[1, 3]"
    moved = nn.Sequential(*model).double()
    x = torch.from_numpy(rng().normal(size=(1, 2, 3, 3)))
    before = moved(x)
    with torch.no_grad():
        moved[2].weight[1, 3] += step
    change = (moved(x) - before)[0].detach().numpy() / step
    expected = np.einsum("crk,crko->o", x[0].numpy(), J.sel(params=name).values)
    np.testing.assert_allclose(change, expected, atol=1e-9)
    only = model_jacobian(model, [2, 3, 3], params=["2.weight"])
    assert only.sizes["params"] == 24


class Scaled(nn.Module):
    """s v'x."""

    def __init__(self) -> None:
        super().__init__()
        self.s, self.v = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.s * (x @ self.v)[:, None]


def test_a_parameter_of_one_number_has_its_name_alone():
    J = model_jacobian(Scaled(), [2])
    assert list(J["params"].values) == ["s", "v[0]", "v[1]"]
    np.testing.assert_allclose(J.values.reshape(2, 3), [[1, 3, 0], [2, 0, 3]])


@pytest.mark.parametrize(("n", "p", "rank"), [(6, 4, 1), (10, 6, 2), (30, 12, 3)])
def test_directions_of_rounding_in_a_singular_covariance_hold_nothing(n, p, rank):
    B = rng().normal(size=(n, rank))
    assert linear_capacity(rng(1).normal(size=(n, p)), B @ B.T).total == pytest.approx(rank, abs=1e-9)


@pytest.mark.parametrize("method", ["ledoit-wolf", "oas", "none", 0.3])
def test_streamed_covariances_are_those_of_scikit_learn(method):
    sklearn = pytest.importorskip("sklearn.covariance")
    by_name = {"ledoit-wolf": sklearn.LedoitWolf(), "oas": sklearn.OAS(), "none": sklearn.EmpiricalCovariance()}
    estimator = by_name.get(method, sklearn.ShrunkCovariance(shrinkage=0.3))
    X = rng().normal(size=(50, 6)) @ rng(1).normal(size=(6, 6)) + 1e3
    batches = [torch.from_numpy(part).reshape(-1, 2, 3) for part in np.array_split(X, 7)]
    found = estimate_covariance(batches, method).matrix
    np.testing.assert_allclose(found, estimator.fit(X).covariance_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(estimate_covariance(batches, estimator).matrix, estimator.covariance_, rtol=1e-12)


def test_shrinkage_of_few_examples_and_of_constant_data():
    sklearn = pytest.importorskip("sklearn.covariance")
    X = rng().normal(size=(3, 5))
    for name, estimator in {"ledoit-wolf": sklearn.LedoitWolf(), "oas": sklearn.OAS()}.items():
        np.testing.assert_allclose(estimate_covariance(torch.from_numpy(X), name).matrix, estimator.fit(X).covariance_)
    flat = torch.ones(4, 2, dtype=torch.float64)
    assert float(estimate_covariance(flat, "ledoit-wolf").matrix.abs().max()) == 0
    assert float(estimate_covariance(flat, "oas").matrix.abs().max()) == 0


J = np.eye(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear_capacity(np.ones(3)), ValueError, r"must be \(inputs, params\)"),
        (lambda: linear_capacity(np.ones((0, 3))), ValueError, "jacobian is empty"),
        (lambda: linear_capacity(np.full((2, 2), np.nan)), ValueError, "jacobian holds NaN"),
        (lambda: linear_capacity(np.ones((2, 2)) * 1j), TypeError, "real numbers"),
        (lambda: linear_capacity([["a"]]), TypeError, "jacobian must be real numbers"),
        (
            lambda: linear_capacity(np.asarray(J, np.longdouble)),
            TypeError,
            "jacobian must be an array or tensor of num",
        ),
        (lambda: linear_capacity(np.eye(3) > 0), TypeError, r"jacobian must hold real numbers, got torch\.bool"),
        (lambda: linear_capacity(xr.DataArray(J, dims=("params", "x"))), ValueError, "'params' last"),
        (lambda: linear_capacity(J, np.ones(2)), ValueError, "pass 3 variances"),
        (lambda: linear_capacity(J, Stationary([1.0, 0.5])), ValueError, "of 2 inputs"),
        (lambda: linear_capacity(J, -np.ones(3)), ValueError, "negative variance"),
        (lambda: linear_capacity(J, np.diag([1.0, 1, -1])), ValueError, "indefinite"),
        (lambda: linear_capacity(J, np.triu(np.ones((3, 3)))), ValueError, "not symmetric"),
        (lambda: linear_capacity(J, np.ones((3, 3)), root="cholesky"), ValueError, "no innovation"),
        (lambda: linear_capacity(J, ridge=-1), ValueError, "ridge must be"),
        (lambda: linear_capacity(J, root="square"), ValueError, "root must be one of"),
        (lambda: linear_capacity(J, basis=fourier_basis(4)), ValueError, "basis is of 4 inputs"),
        (lambda: fourier_basis(0), ValueError, "at least 1"),
        (lambda: orthonormal_basis(np.ones((3, 2))), ValueError, "not orthonormal"),
        (lambda: orthonormal_basis(np.eye(2), [[1, 2], [3]]), ValueError, "labels must be one text or number for each"),
        (lambda: orthonormal_basis(J, labels=["a"]), ValueError, "for 3 vectors"),
        (lambda: principal_basis(np.ones((2, 3))), ValueError, "must be square"),
        (lambda: principal_basis(J, 4), ValueError, r"1 \.\. 3"),
        (lambda: Covariance(np.ones((2, 3))), ValueError, "must be square"),
        (lambda: Variances(J), ValueError, "needs 1 axis"),
        (lambda: LowRankPlusDiagonal([1.0], J), ValueError, r"pass \(inputs, k\)"),
        (lambda: LowRankPlusDiagonal([1.0, 0.0, 1.0], J), ValueError, "must be positive"),
        (lambda: Stationary([0.0, 1.0]), ValueError, "positive at lag 0"),
        (lambda: Stationary([]), ValueError, "positive at lag 0"),
        (lambda: linear_capacity(J, Stationary([1.0, 1.0, 1.0])), ValueError, "not positive definite"),
        (lambda: linear_capacity(J, Stationary([1.0, 0.9, -0.9])), ValueError, "not positive definite"),
        (  # positive definite in exact arithmetic, of condition 1e9
            lambda: linear_capacity(J, Stationary(np.exp(-((np.arange(3) / 100) ** 2) / 2))),
            ValueError,
            "not positive definite to working precision",
        ),
        (
            lambda: linear_capacity(J, Stationary([1.0, 0.9, -0.9]), root="cholesky"),
            ValueError,
            "not positive definite",
        ),
        (lambda: estimate_covariance(torch.ones(1, 2)), ValueError, "at least two examples"),
        (lambda: estimate_covariance(torch.ones(3)), ValueError, "examples axis"),
        (lambda: estimate_covariance([torch.ones(3, 2), torch.ones(4, 3)]), ValueError, "batches differ"),
        (lambda: estimate_covariance(torch.ones(3, 2), "best"), ValueError, "shrinkage must be one of"),
        (lambda: estimate_covariance(torch.ones(3, 2), 2.0), ValueError, r"\[0, 1\]"),
        (lambda: estimate_covariance(torch.ones(3, 2), None), TypeError, "a number or an estimator"),
        (lambda: model_jacobian(nn.Linear(2, 1), [2]), ValueError, "has an intercept"),
        (
            lambda: model_jacobian(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh()), [2]),
            ValueError,
            "not linear in its inputs",
        ),
        (lambda: model_jacobian(nn.Linear(2, 1, bias=False), [3]), ValueError, "does not accept inputs"),
        (lambda: model_jacobian(nn.Conv2d(1, 1, 1), [1, 2, 2], lags=True), ValueError, "one axis"),
        (lambda: model_jacobian(None, [2]), TypeError, "model must be a Module"),
    ],
)
def test_a_bad_argument_is_a_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()
