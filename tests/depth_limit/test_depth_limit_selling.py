"""Section 5: positive moves for any diffusion matrix and any drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from capalloc.depth_limit import StepLaw, WalkBlock, diffusion, point
from capalloc.depth_limit.drift_diffusion import drift_diffusion_moves
from capalloc.depth_limit.selling import obtuse_superbases, selling


def reconstructed(offsets, weights):
    return np.einsum("pn,pna,pnb->nab", weights, offsets, offsets)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_random_matrices_are_reconstructed(d):
    """Up to a ratio of eigenvalues of 1e4; rounding grows with the ratio, from 1e-16."""
    rng = np.random.default_rng(d)
    turn = np.linalg.qr(rng.normal(size=(500, d, d)))[0]
    D = turn * np.exp(rng.uniform(-9, 0, (500, 1, d))) @ turn.swapaxes(1, 2)
    offsets, weights = selling(D)
    assert (weights >= 0).all()
    assert len(weights) == d * (d + 1) // 2
    np.testing.assert_allclose(reconstructed(offsets, weights), D, atol=1e-11)
    bases = obtuse_superbases(D)
    assert not bases.sum(1).any()
    if d > 1:  # a basis of the whole lattice
        np.testing.assert_allclose(abs(np.linalg.det(bases[:, 1:])), 1)


@settings(max_examples=50, deadline=None)
@given(a=st.floats(0, 1), b=st.floats(0, 1), share=st.floats(-1, 1))
def test_two_axes_of_short_moves_have_a_closed_form(a, b, share):
    """Diagonally dominant: D_11 - |D_12|, D_22 - |D_12| along the axes, |D_12| along a diagonal."""
    cross = share * min(a, b)
    offsets, weights = selling(np.array([[[a, cross], [cross, b]]]))
    found = {tuple(abs(e[0])): float(w[0]) for e, w in zip(offsets, weights, strict=True)}
    assert found.get((1, 0), 0) == pytest.approx(a - abs(cross), abs=1e-12)
    assert found.get((0, 1), 0) == pytest.approx(b - abs(cross), abs=1e-12)
    assert found.get((1, 1), 0) == pytest.approx(abs(cross), abs=1e-12)
    assert abs(cross) < 1e-12 or all(e[0, 0] * e[0, 1] * cross >= 0 for e in offsets)


def test_a_second_moment_along_one_line_of_the_grid_needs_no_other_moves():
    y = np.array([[1, 2, -3], [2, 0, 1]])
    for D in (np.outer(y[0], y[0])[None], (y.T @ y)[None], np.zeros((1, 3, 3))):
        offsets, weights = selling(D.astype(float))
        np.testing.assert_allclose(reconstructed(offsets, weights), D, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e3])
def test_rates_are_positive_with_exact_drift_at_any_peclet_number(d, size):
    rng = np.random.default_rng(d)
    A = rng.normal(size=(200, d, d))
    D, b = A @ A.swapaxes(1, 2) + 0.01 * np.eye(d), size * rng.normal(size=(200, d))
    moves = drift_diffusion_moves(b, D)
    assert (moves.weights >= 0).all()
    mean = np.einsum("pn,pna->na", moves.weights, moves.offsets)
    scale = np.einsum("pn,pna->na", moves.weights, abs(moves.offsets)) + 1e-300
    np.testing.assert_allclose(mean / scale, b / scale, atol=1e-10)
    second = reconstructed(moves.offsets, moves.weights)
    excess = np.linalg.eigvalsh(second - D) / np.trace(second, axis1=1, axis2=2)[:, None]
    assert excess.min() > -1e-10  # the drift only adds spread
    if size == 0:
        np.testing.assert_allclose(second, D, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_spread_that_the_drift_adds_is_of_second_order_in_the_cells(d):
    """b -> b / h, D -> D / h^2: the moments back in pixels miss D by O(h^2)."""
    turn = Rotation.from_euler("xyz", [0.3, 0.5, 0.7]).as_matrix()[:d, :d]
    D, b = turn @ np.diag([1.0, 0.5, 0.3][:d]) @ turn.T, np.array([0.5, -0.2, 0.3])[:d]
    spacings, errors = 0.5 ** np.arange(1, 6), []
    for h in spacings:
        moves = drift_diffusion_moves(b / h, D / h**2)
        second = np.einsum("p,pa,pb->ab", moves.weights, moves.offsets, moves.offsets)
        errors.append(abs(second * h**2 - D).max())
    assert np.polyfit(np.log(spacings), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("method", ["sparse", "fft"])
def test_a_step_along_one_diagonal_stays_on_it(method):
    law = StepLaw(np.diag([1.0, 0, 1.0]))
    final = diffusion([WalkBlock(law, 2.0)], point((15, 15)), "periodic", method=method).final.to_numpy()
    np.testing.assert_allclose(np.diagonal(final).sum(), 1, atol=1e-12)


def test_refusals():
    golden = np.array([1.0, (1 + 5**0.5) / 2])
    with pytest.raises(ValueError, match=r"no short moves on the grid, being nearly singular: .*; use jump"):
        selling((np.outer(golden * [1, 1e-4], golden * [1, 1e-4]))[None])
    law = StepLaw(np.eye(9)[:, ::2], origin=(4, 2))  # displacements (-4, -2) .. (4, 2)
    with pytest.raises(ValueError, match=r"moves reach .* cells, on a grid of .*; take a larger grid, or jump"):
        diffusion([WalkBlock(law, 1.0)], point((2, 5)))
