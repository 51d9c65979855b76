"""The dense solver's two roads: an orthogonal factorisation, and a Gram matrix with a ridge above its rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capalloc._linalg.gram_root import GramPass, gram_error, largest_trace, root_of_gram
from capalloc._linalg.leverage import ParamUnits, accumulate, inverse_root, norm_from_below, polar_factor
from capalloc._linalg.row_block import SPANS, RowBlock, block_of, joined
from capalloc._measure.dense import root_from_gram, scores_in_memory, scores_in_passes
from capalloc._runtime.steps import Steps

SLOTS, ACCURACY = 3, 1e-8


def matrix(rows: int, params: int, decay: float, seed: int = 0) -> Tensor:
    """Random singular vectors, singular values from 1 down to 10^-decay."""
    random = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, min(rows, params), generator=random, dtype=torch.float64)).Q
        for n in (rows, params)
    )
    return (left * torch.logspace(0, -decay, min(rows, params), dtype=torch.float64)) @ right.T


def blocks(C: Tensor, size: int):
    slots = torch.arange(len(C)) % SLOTS
    return lambda start=0: list(map(block_of, C.split(size), slots.split(size)))[start:]


def parts(C: Tensor, size: int) -> list[RowBlock]:
    return blocks(C, size)()


def sizes_of(C: Tensor) -> list[int]:
    return [C.shape[1] // 2, C.shape[1] - C.shape[1] // 2]


def reference(C: Tensor, ridge: float) -> np.ndarray:
    """Squared entries of C (C'C + ridge)^(-1/2) by a singular value decomposition in float64."""
    left, singular, right = torch.linalg.svd(C, full_matrices=False)
    polar = (left * (singular / (singular.square() + ridge).sqrt())) @ right
    table = torch.zeros(2, SLOTS, dtype=torch.float64)
    accumulate(table, polar, torch.arange(len(C)) % SLOTS, sizes_of(C))
    return table.numpy()


def scores(C: Tensor, ridge: float, size: int = 50, accuracy: float = ACCURACY, units: ParamUnits | None = None):
    if len(C) < C.shape[1]:
        return scores_in_memory(Steps(blocks(C, size)), sizes_of(C), SLOTS, ridge, accuracy, units)
    return scores_in_passes(Steps(blocks(C, size)), sizes_of(C), SLOTS, len(C), ridge, accuracy, units=units)


def gram_of(blocks, dtype: torch.dtype, most: float = math.inf) -> Tensor | None:
    work = GramPass(dtype, most)
    return work.whole(work.over(blocks))


def took_gram(found) -> bool:
    """The Gram road has no polar factor of F."""
    return found.root.polar.numel() == 0


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (60, 60)])
@pytest.mark.parametrize("ridge", [1e-2, 1.0])
def test_gram_road_equals_singular_values(shape, ridge):
    C = matrix(*shape, decay=4)
    found = scores(C, ridge)
    assert took_gram(found)
    np.testing.assert_allclose(found.table, reference(C, ridge), rtol=1e-9)
    values = torch.linalg.svdvals(C).square()
    assert found.root.capacity == pytest.approx(float((values / (values + ridge)).sum()), rel=1e-9)
    assert found.table.sum() == pytest.approx(found.root.capacity, rel=1e-9)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize("ridge", [0.0, 1e-10])
def test_ranks_and_small_ridges_keep_the_orthogonal_road(shape, ridge):
    """Singular values down to 1e-6: their squares, 1e-12, would drown in G's rounding beside the ridge."""
    C = matrix(*shape, decay=6)
    found = scores(C, ridge)
    assert not took_gram(found)
    assert found.root.rank == 40
    np.testing.assert_allclose(found.table, reference(C, ridge), rtol=1e-7)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    rank=st.integers(1, 12),
    spread=st.floats(0, 40),
    seed=st.integers(0, 100),
)
def test_ranks_and_rows_do_not_see_the_scale_of_columns(shape, rank, spread, seed):
    """Columns of random matrices of a known rank by up to 10^40, told by their units: rank and scores of rows stay."""
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=random, dtype=torch.float64) for n in shape)
    scale = 10 ** (spread * (torch.rand(shape[1], generator=random, dtype=torch.float64) - 0.5))
    C = left @ right.T
    scaled, plain = C * scale, scores(C, 0.0)
    for units in (ParamUnits(1 / scale, 1 / scale), ParamUnits(torch.ones_like(scale), 1 / scale)):
        found, polar_root = scores(scaled, 0.0, units=units), polar_factor(scaled, units=units)[1]
        assert found.root.rank == plain.root.rank == polar_root.rank == min(*shape, rank)
        np.testing.assert_allclose(found.table.sum(0), plain.table.sum(0), atol=1e-8)
    turned = scores(scaled, 0.0, units=ParamUnits(1 / scale, 1 / scale))
    np.testing.assert_allclose(turned.table, plain.table, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 2.0, 4.0, 6.0, 8.0, 12.0])
@pytest.mark.parametrize("decay", [0.0, 3.0, 6.0])
def test_one_decomposition_says_what_three_do(spread, decay, monkeypatch):
    """Where singular values that count are far above rounding those of columns of length 1 only confirm the rank."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 20, generator=random, dtype=torch.float64) for n in (90, 40))
    C = left * 10 ** -torch.linspace(0, decay, 20, dtype=torch.float64) @ right.T
    C = torch.cat([C, C[:, :1], torch.zeros(90, 1, dtype=torch.float64)], 1)
    scale = 10 ** (spread * (torch.rand(42, generator=random, dtype=torch.float64) - 0.5))
    units = ParamUnits(scale, scale)
    short = inverse_root(C, 0.0, 90, units=units)
    monkeypatch.setattr("capalloc._linalg.leverage.WELL_ABOVE_ROUNDING", 2.0)
    long = inverse_root(C, 0.0, 90, units=units)
    assert short.rank == long.rank == 20
    np.testing.assert_allclose(short.polar.square(), long.polar.square(), atol=1e-6)
    np.testing.assert_allclose((C @ short.matrix).square(), (C @ long.matrix).square(), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 40), (60, 20)])
def test_the_norm_from_below_is_one_and_near(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert 0.8 * largest < norm_from_below(matrix) <= largest * (1 + 1e-14)
    assert norm_from_below(torch.zeros(shape, dtype=torch.float64)) == 0


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(2, 60)),
    decay=st.floats(0, 7),
    exponent=st.floats(-6, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_the_stated_bound_holds(shape, decay, exponent, dtype, seed):
    """Capacities from G differ from those of singular values by less than `gram_error` says, or it says too much."""
    C, ridge = matrix(*shape, decay=decay, seed=seed), 10.0**exponent
    gram = gram_of(parts(C, 7), dtype)
    bound = min(1e9, gram_error(float(gram.trace()), ridge, 512 if dtype == torch.float32 else len(C), dtype))
    root = root_of_gram(gram, ridge, max(shape), torch.float64)
    exact = reference(C, ridge).sum(0)
    found = torch.zeros(2, SLOTS, dtype=torch.float64)
    accumulate(found, C @ root.matrix, torch.arange(len(C)) % SLOTS, sizes_of(C))
    decomposition = 1e-12 * (1 + float(gram.trace()) / ridge)  # of eigh itself, and of the reference
    assert (np.abs(found.sum(0).numpy() - exact) <= (bound + decomposition) * exact + 1e-300).all()


@pytest.mark.parametrize(("accuracy", "dtype"), [(1e-9, torch.float64), (1e-3, torch.float32)])
@pytest.mark.parametrize("shape", [(2000, 30), (30, 700)])
def test_accuracy_chooses_the_precision(shape, accuracy, dtype):
    C = matrix(*shape, decay=3)
    found = scores(C, 0.5, size=300, accuracy=accuracy)
    assert took_gram(found)
    assert found.root.matrix.dtype == dtype
    assert found.table.dtype == torch.float64
    np.testing.assert_allclose(found.table.sum(0), reference(C, 0.5).sum(0), rtol=accuracy)


def test_a_precision_that_turns_out_too_low_is_given_up():
    """The trace is known only after the pass: float32, then float64, then none."""
    C = 100 * matrix(200, 20, decay=1)
    trace = float(C.square().sum())
    for accuracy, ridge, dtype in ((1e-3, trace, torch.float32), (1e-9, 1.0, torch.float64), (1e-12, 1e-6, None)):
        root = root_from_gram(Steps(blocks(C, 64)), ridge, len(C), accuracy)
        assert (root.matrix.dtype if root else None) == dtype
    assert root_from_gram(Steps(blocks(C, 64)), 0.0, len(C), 1.0) is None


@given(
    st.floats(1e-12, 1.0), st.floats(1e-8, 1e8), st.integers(1, 10**7), st.sampled_from([torch.float32, torch.float64])
)
def test_the_largest_trace_meets_the_accuracy(accuracy, ridge, terms, dtype):
    trace = largest_trace(accuracy, ridge, terms, dtype)
    assert gram_error(trace, ridge, terms, dtype) == pytest.approx(accuracy, rel=1e-3)  # d close to the ridge cancels


def test_a_trace_above_the_bound_ends_the_pass():
    seen = []

    def given():
        for row in parts(torch.ones(10, 3, dtype=torch.float64), 1):
            seen.append(row)
            yield row

    assert gram_of(given(), torch.float64, most=11.9) is None
    assert len(seen) == 4
    assert gram_of(given(), torch.float64, most=30.1).trace() == 30


def test_the_bound_grows_with_terms_and_has_no_answer_below_rounding():
    assert gram_error(1.0, 1.0, 400, torch.float64) == pytest.approx(4 * 20 * 2**-53, rel=1e-9)
    assert gram_error(1.0, 1e-20, 400, torch.float64) == float("inf")
    assert gram_error(1.0, 1.0, 100, torch.float32) < gram_error(1.0, 1.0, 400, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 37, 600])
def test_streamed_gram_does_not_depend_on_blocks(size, dtype):
    C = matrix(600, 23, decay=2)
    gram = gram_of(parts(C, size), dtype)
    assert torch.equal(gram, gram.T)
    np.testing.assert_allclose(gram, C.T @ C, atol=1e-7 if dtype == torch.float32 else 1e-15)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_zero_rows_have_no_capacity(ridge):
    found = scores(torch.zeros(30, 4, dtype=torch.float64), ridge)
    assert not found.table.any()
    assert found.root.rank == 0


# Columns that are skipped


def sparse(groups: int, height: int, sizes: tuple[int, int], seed: int = 0) -> Tensor:
    """Groups of rows that share the first columns; each has a part of the last ones for itself."""
    shared, own = sizes
    C = torch.zeros(groups, height, shared + groups * own, dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    C[..., :shared] = torch.randn(groups, height, shared, generator=random, dtype=torch.float64)
    for k in range(groups):
        start = shared + k * own
        C[k, :, start : start + own] = torch.randn(height, own, generator=random, dtype=torch.float64)
    return C


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(64, 16), (70, 23), (5, 40), (0, 30), (200, 1)])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_skipped_columns_change_no_product(groups, sizes, dtype):
    C = sparse(groups, 12, sizes).flatten(0, 1)
    block = block_of(C, torch.arange(len(C)), groups)
    gram = torch.zeros(C.shape[1], C.shape[1], dtype=torch.float64)
    block.add_gram([gram], dtype)
    atol = 1e-4 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(gram.tril(), (C.T @ C).tril(), atol=atol)
    matrix = torch.randn(C.shape[1], 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = block.times(matrix.to(dtype))
    assert product.dtype == dtype
    np.testing.assert_allclose(product, C @ matrix, atol=atol)


def test_empty_columns_are_found_by_tile():
    block = block_of(sparse(2, 3, (40, 32)).flatten(0, 1), torch.arange(6), 2)
    assert block.filled.int().tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1]]
    shared, own = block.spans()
    assert shared == [(0, 48), (64, 80)]
    assert own == [[(48, 64)], [(80, 104)]]


def test_scattered_columns_are_not_skipped():
    """Many narrow products are slow: beyond `SPANS` of them all columns are taken."""
    C = torch.zeros(2, 4, 2 * 16 * (SPANS + 2), dtype=torch.float64)
    C[0, :, ::32], C[1] = 1, 1
    block = block_of(C.flatten(0, 1), torch.arange(8), 2)
    assert block.spans() == ([(0, C.shape[2])], [[], []])


def test_joined_blocks_keep_groups_together():
    whole = sparse(3, 8, (32, 32))
    whole[1, 4:, 64:96] = 0  # a tile that is empty in one of the blocks
    slots = torch.arange(24).view(3, 8)
    halves = [
        block_of(part.flatten(0, 1), s.flatten(), 3)
        for part, s in zip(whole.split(4, 1), slots.split(4, 1), strict=True)
    ]
    both = joined(halves)
    assert torch.equal(both.rows, whole.flatten(0, 1))
    assert torch.equal(both.slots, slots.flatten())
    assert torch.equal(both.filled, block_of(whole.flatten(0, 1), slots.flatten(), 3).filled)


@pytest.mark.parametrize("ridge", [0.0, 1.0])
@pytest.mark.parametrize("height", [7, 400])
def test_scores_of_rows_with_skipped_columns(height, ridge):
    whole = torch.cat([sparse(4, 35, (30, 20), seed) for seed in range(4)], 1)
    given = [block_of(p.flatten(0, 1), torch.arange(4 * p.shape[1]) % SLOTS, 4) for p in whole.split(height, 1)]
    assert given[0].spans()[1][0]
    C, slots = (torch.cat([getattr(block, name) for block in given]) for name in ("rows", "slots"))
    found = scores_in_passes(Steps(lambda start: given[start:]), sizes_of(C), SLOTS, len(C), ridge, ACCURACY)
    plain = scores_in_passes(Steps(lambda start: [block_of(C, slots)]), sizes_of(C), SLOTS, len(C), ridge, ACCURACY)
    np.testing.assert_allclose(found.table, plain.table, rtol=1e-9)
    assert took_gram(found) == (ridge > 0)


def test_an_accuracy_below_rounding_rules_a_precision_out():
    """A trace of zero has no rounding in G, but scores are read off the root in its precision."""
    C = matrix(60, 5, decay=1)
    for accuracy, dtype in ((1e-7, torch.float64), (1e-5, torch.float32)):
        assert root_from_gram(Steps(blocks(C, 20)), 1e9, len(C), accuracy).matrix.dtype == dtype
