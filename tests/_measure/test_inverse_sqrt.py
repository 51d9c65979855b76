"""The inverse root by Lanczos: the oracle is the eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._linalg.lanczos import inverse_sqrt, recurrence
from zoo import gaussian


def vectors_and_coefficients(A: Tensor, v: Tensor, steps: int) -> tuple[list[Tensor], Tensor, Tensor]:
    found, vectors = recurrence(v), []
    for _ in range(steps):
        vectors.append(found.v)
        found = found.step(found.v @ A)
    return vectors, *inverse_sqrt(found)


def test_the_inverse_root_is_exact_where_the_space_ends_and_leaves_out_the_null_space():
    half, v = gaussian(4, 6), gaussian(2, 6, seed=3)
    A = half.T @ half
    vectors, made, zero = vectors_and_coefficients(A, v, 4)
    values, basis = torch.linalg.eigh(A)
    root = basis[:, 2:] @ torch.diag(values[2:] ** -0.5) @ basis[:, 2:].T
    y = v.norm(dim=1, keepdim=True) * sum(c[:, None] * u for c, u in zip(made.T, vectors, strict=True))
    torch.testing.assert_close(y @ A, v @ root @ A, rtol=1e-7, atol=1e-8)
    null = (v @ basis[:, :2]).square().sum(1)
    torch.testing.assert_close(zero, null / v.square().sum(1), rtol=1e-7, atol=1e-8)


def test_two_steps_take_the_value_of_the_inverse_root_at_two_nodes():
    half, v = gaussian(9, 5), gaussian(1, 5, seed=3)
    A = half.T @ half
    vectors, made, _ = vectors_and_coefficients(A, v, 2)
    m = torch.stack([(v @ torch.linalg.matrix_power(A, k) @ v.T)[0, 0] for k in range(1, 5)])  # of lambda times mu
    constant, linear = torch.linalg.solve(torch.stack([m[:2], m[1:3]]), -m[2:])  # x^2 + linear x + constant
    gap = (linear**2 - 4 * constant).sqrt()
    low, high = (-linear - gap) / 2, (-linear + gap) / 2
    slope = (high**-0.5 - low**-0.5) / (high - low)
    y = v.norm() * (made[0, 0] * vectors[0] + made[0, 1] * vectors[1])
    torch.testing.assert_close(y, (v @ A - low * v) * slope + low**-0.5 * v)


def test_the_mass_at_zero_is_bounded_from_above_and_falls():
    half, v = gaussian(20, 30), gaussian(3, 30, seed=1)
    masses = torch.stack([vectors_and_coefficients(half.T @ half, v, k)[2] for k in range(1, 9)])
    assert (masses.diff(dim=0) <= 1e-12).all()
    null = v - v @ torch.linalg.pinv(half) @ half
    assert (masses[-1] >= null.square().sum(1) / v.square().sum(1) - 1e-12).all()


def test_nothing_has_no_inverse():
    _, made, zero = vectors_and_coefficients(torch.zeros(3, 3).double(), gaussian(2, 3), 2)
    assert made.abs().max() == 0
    torch.testing.assert_close(zero, torch.ones(2).double())
