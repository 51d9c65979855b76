"""Singular values above a number are counted by inertia as they are by finding them."""

import pytest
import torch

from capalloc._linalg.leverage import Triangle, number_above
from zoo import gaussian


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(5, 5, 5), (7, 4, 3), (4, 7, 2), (60, 60, 41), (1, 1, 1), (9, 9, 0)]
)
def test_counts_of_random_matrices(rows, columns, rank):
    A = gaussian(rows, rank, seed=0) @ gaussian(rank, columns, seed=1)
    singular = torch.linalg.svdvals(A)
    for least in (1e-9, 0.1, 1.0, 10.0):
        assert number_above(A, least) == int((singular > least).sum())


@pytest.mark.parametrize("least", [1e-3, 1e-8, 1e-12])
def test_counts_down_to_rounding(least):
    """Singular values from 1 to 1e-18, four a decade or so."""
    sizes = torch.logspace(0, -18, 80, dtype=torch.float64)
    left, right = (torch.linalg.qr(gaussian(80, 80, seed=seed)).Q for seed in (0, 1))
    assert number_above(left @ torch.diag(sizes) @ right, least) == int((sizes > least).sum())


def test_nothing_has_no_singular_values():
    assert number_above(torch.zeros(0, 5, dtype=torch.float64), 1.0) == 0


def test_a_factor_alone_is_not_factored_again(monkeypatch):
    factor = torch.linalg.qr(gaussian(9, 4, seed=0), mode="r").R
    monkeypatch.setattr(torch.linalg, "qr", None)
    assert Triangle().finish((factor,)) == (factor,)
