"""Inverse roots on a shared Krylov space: the oracles are eigendecompositions and moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capalloc._linalg.krylov import KrylovSpace
from zoo import gaussian

ROUNDING = 1e-12


def after(A: Tensor, starts: Tensor, steps: int) -> KrylovSpace:
    space = KrylovSpace.of(starts, ROUNDING)
    for _ in range(steps):
        space = space.step(space.next @ A)
    return space


def root_of(A: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(A)
    kept = values > 1e-10 * values[-1]
    return basis[:, kept] @ torch.diag(values[kept] ** -0.5) @ basis[:, kept].T


def energy(A: Tensor, y: Tensor) -> Tensor:
    return (y @ A * y).sum(1)


@pytest.mark.parametrize("starts", [1, 2, 3, 9])
def test_the_inverse_root_is_exact_where_the_space_ends_and_leaves_out_the_null_space(starts):
    half, v = gaussian(6, 9), gaussian(starts, 9, seed=3)
    A = half.T @ half
    space = after(A, v, 7)
    assert not len(space.next)
    torch.testing.assert_close(space.inverse_sqrt(v) @ A, v @ root_of(A) @ A, rtol=1e-7, atol=1e-8)


def test_two_steps_from_one_start_take_the_value_of_the_inverse_root_at_two_nodes():
    half, v = gaussian(9, 5), gaussian(1, 5, seed=3)
    A = half.T @ half
    y = after(A, v, 2).inverse_sqrt(v)
    m = torch.stack([(v @ torch.linalg.matrix_power(A, k) @ v.T)[0, 0] for k in range(1, 5)])  # of lambda times mu
    constant, linear = torch.linalg.solve(torch.stack([m[:2], m[1:3]]), -m[2:])  # x^2 + linear x + constant
    gap = (linear**2 - 4 * constant).sqrt()
    low, high = (-linear - gap) / 2, (-linear + gap) / 2
    slope = (high**-0.5 - low**-0.5) / (high - low)
    torch.testing.assert_close(y, (v @ A - low * v) * slope + low**-0.5 * v)


def test_what_is_counted_grows_with_steps_and_with_starts_and_is_never_too_much():
    half, v = gaussian(20, 30), gaussian(3, 30, seed=1)
    A = half.T @ half
    counted = torch.stack([energy(A, after(A, v, k).inverse_sqrt(v)) for k in range(1, 7)])
    assert (counted.diff(dim=0).sum(1) >= -1e-9).all()
    assert (counted <= (v @ torch.linalg.pinv(half) @ half).square().sum(1) + 1e-9).all()
    alone = torch.cat([energy(A, after(A, one[None], 3).inverse_sqrt(one[None])) for one in v])
    assert counted[2].sum() >= alone.sum()


def test_outliers_that_one_start_has_found_are_known_to_all():
    """Eight eigenvalues of 1e6 to 1e8 beside those of 1."""
    basis = torch.linalg.qr(gaussian(60, 60)).Q
    A = basis @ torch.diag(torch.cat([torch.ones(52), torch.logspace(6, 8, 8)]).double()) @ basis.T
    v, exact = gaussian(8, 60, seed=2), root_of(A)
    shared = after(A, v, 2).inverse_sqrt(v)
    alone = torch.cat([after(A, one[None], 2).inverse_sqrt(one[None]) for one in v])
    error = [float((y - v @ exact).norm() / (v @ exact).norm()) for y in (shared, alone)]
    assert error[0] < 0.1, error
    assert error[1] > 5 * error[0], error


def test_the_basis_stays_orthonormal_where_starts_and_products_are_nearly_dependent():
    v = gaussian(4, 40)
    v = torch.cat([v, v[:2] + 1e-9 * gaussian(2, 40, seed=5)])
    A = torch.diag(torch.logspace(-12, 3, 40).double())
    basis = torch.cat(after(A, v, 6).blocks)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double(), rtol=0, atol=1e-12)


def test_nothing_has_no_inverse():
    v = gaussian(2, 3)
    space = after(torch.zeros(3, 3).double(), v, 1)
    assert not len(space.next)
    assert space.inverse_sqrt(v).abs().max() == 0
