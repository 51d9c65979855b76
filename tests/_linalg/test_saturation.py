"""What few constraints hold: the oracles are pseudo-inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from capalloc._linalg.saturation import BlockMoments
from zoo import gaussian


def blocks_of(C: Tensor, inverse: Tensor) -> BlockMoments:
    """Exact moments for rows (examples, slots, rows, params)."""
    M = C @ inverse @ C.mT
    return BlockMoments(M.diagonal(dim1=-2, dim2=-1).sum(-1), M.square().sum((-2, -1)), C.shape[2])


def leverage(C: Tensor) -> Tensor:
    """Capacity of every slot by brute force."""
    flat = C.flatten(0, 2)
    return (flat @ torch.linalg.pinv(flat)).diagonal().view(C.shape[:3]).sum((0, 2))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a / a.sum() - b / b.sum()).abs().sum() / 2)


@pytest.mark.proves("4", "what few constraints hold", oracle="the projector on all constraints")
def test_rows_that_the_matrix_knows_hold_their_leverage():
    C = gaussian(9, 4, 1, 12)
    moments = blocks_of(C, torch.linalg.inv(C.flatten(0, 2).T @ C.flatten(0, 2)))
    torch.testing.assert_close(moments.held(12.0, torch.ones(4).double()), leverage(C))


@pytest.mark.proves("4", "what few constraints hold", oracle="the projector on all constraints")
def test_rows_that_the_matrix_does_not_know_hold_less_the_more_they_are_like():
    """Rows of a known covariance, strong in one slot: its own share would be twice what it holds."""
    scale = torch.tensor([6.0, 1.0, 1.0, 0.5, 0.5]).double()[:, None, None]
    root = gaussian(60, 60, seed=1) * torch.linspace(0.1, 1, 60)
    C = gaussian(12, 5, 2, 60, seed=2) @ root * scale
    known = 12 * 2 * float(scale.square().sum()) * root.T @ root
    moments, exact = blocks_of(C, torch.linalg.inv(known)), leverage(C)
    plain, found = moments.first.sum(0), moments.held(60.0, torch.zeros(5).double())
    assert distance(plain, exact) > 0.25
    assert distance(found, exact) < 0.03
    assert float(found.sum()) == pytest.approx(60)


@pytest.mark.proves("4", "no slot holds more than its constraints", oracle="their number")
def test_blocks_without_a_row_hold_nothing_and_none_holds_more_than_its_rows():
    moments = BlockMoments(*torch.tensor([[[1e6, 1.0, 0.0]], [[1e12, 1.0, 0.0]]]).double(), num_rows=3)
    found = moments.held(2.5, torch.zeros(3).double())
    assert found[2] == 0
    assert found[0] <= 3
    assert float(found.sum()) == pytest.approx(2.5)


@pytest.mark.parametrize("probes", [3, 7])
def test_moments_from_few_probes_have_no_bias(probes):
    M = gaussian(5, 5, seed=3)
    M = M @ M.T
    draws = gaussian(4000, probes, 5, seed=4) @ torch.linalg.cholesky(M).T
    found = BlockMoments.of(draws.permute(1, 2, 0)[..., None], 5)  # each draw an example
    for values, exact in ((found.first, M.trace()), (found.second, M.square().sum())):
        assert abs(float(values.mean() - exact)) < 4 * float(values.std()) / 4000**0.5
    assert found.num_rows == 5


def test_moments_from_few_combinations_of_rows_are_those_of_all_rows():
    M = gaussian(5, 5, seed=3)
    M = M @ M.T
    draws = gaussian(6000, 7, 5, seed=4) @ torch.linalg.cholesky(M).T
    signs = gaussian(6000, 5, 3, seed=5).sign() / 3**0.5
    found = BlockMoments.of((draws @ signs).permute(1, 2, 0)[..., None], 5)
    for values, exact in ((found.first, M.trace()), (found.second, M.square().sum())):
        assert abs(float(values.mean() - exact)) < 4 * float(values.std()) / 6000**0.5


def test_moments_are_the_traces_of_the_estimated_covariance_of_few_and_of_many_rows():
    rows = gaussian(3, 5, 4, 2500, seed=6)  # more places than go at a time
    for part in (slice(5), slice(2)):
        M = torch.einsum("kies,kjes->esij", rows[:, part], rows[:, part]) / 3
        first, square = M.diagonal(dim1=-2, dim2=-1).sum(-1), M.square().sum((-2, -1))
        found = BlockMoments.of(rows[:, part], part.stop)
        torch.testing.assert_close(found.first, first)
        torch.testing.assert_close(found.second, (square - first.square() / 3) * 9 / (2 * 5))


@pytest.mark.parametrize(("first", "total"), [(0.0, 3.0), (2.0, 0.0), (1e-20, 3.0), (5.0, 6.0), (5.0, 7.0)])
def test_what_is_held_is_the_total_even_where_it_is_no_less_than_all_constraints(first, total):
    moments = BlockMoments(*torch.full((2, 2, 3), first).double(), num_rows=1)
    expected = total / 3 if first else 0.0
    torch.testing.assert_close(moments.held(total, torch.zeros(3)), torch.full((3,), expected).double())  # of float32
