"""Scores from the Gram matrix of every slot: those of rows, without a second product."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capalloc import Run, measure
from capalloc._linalg.gram_root import GramPass, gram_error, root_of_gram
from capalloc._linalg.leverage import Scores, accumulate
from capalloc._linalg.row_block import RowBlock, block_of
from capalloc._linalg.slot_grams import SlotGrams
from capalloc._measure import work_plan
from capalloc._measure.dense import root_from_gram, scores_in_passes
from capalloc._measure.work_plan import Plan, Size
from capalloc._runtime.memory import Budget
from capalloc._runtime.steps import Steps
from capalloc.results.allocation import Allocation
from capalloc.solvers import Dense
from zoo import gaussian, seeded_module

SLOTS = 5


def rows(number: int, params: int, decay: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of uneven slots, one of them large and one of no rows, with columns of zeros and of every size."""
    random = torch.Generator().manual_seed(seed)
    C = torch.randn(number, params, generator=random, dtype=torch.float64)
    C *= 10 ** -torch.linspace(0, decay, params, dtype=torch.float64)[torch.randperm(params, generator=random)]
    slots = torch.randint(SLOTS - 1, (number,), generator=random)
    C[slots == 0] *= 30
    C[:, :: max(params // 3, 1)] = 0
    return C / math.sqrt(number), slots


def brute(C: Tensor, slots: Tensor, sizes: list[int], ridge: float) -> Tensor:
    """Squared entries of C (C'C + ridge)^(-1/2), by singular values."""
    left, singular, right = torch.linalg.svd(C, full_matrices=False)
    table = torch.zeros(len(sizes), SLOTS, dtype=torch.float64)
    accumulate(table, (left * (singular / (singular.square() + ridge).sqrt())) @ right, slots, sizes)
    return table


def solved(blocks: list[RowBlock], sizes: list[int], ridge: float, accuracy: float = 1e-8, by_slot: bool = True):
    number = sum(len(block.rows) for block in blocks)
    return scores_in_passes(Steps(lambda start: blocks[start:]), sizes, SLOTS, number, ridge, accuracy, by_slot=by_slot)


def read_by_slot(found: Scores) -> bool:
    return found.root.slots is not None


@pytest.mark.parametrize("ridge", [0.1, 1.0, 1e3])
@pytest.mark.parametrize("params", [1, 9, 300])
@pytest.mark.parametrize("size", [50, 3000])
def test_scores_by_slot_are_those_of_rows(params, ridge, size):
    C, slots = rows(3000, params)
    sizes = [params] if params == 1 else [params // 2, 1, params - params // 2 - 1]
    blocks = list(map(block_of, C.split(size), slots.split(size)))
    found, again = (solved(blocks, sizes, ridge, by_slot=by_slot) for by_slot in (True, False))
    assert read_by_slot(found)
    assert not read_by_slot(again)
    exact = brute(C, slots, sizes, ridge)
    for table in (found.table, again.table):
        np.testing.assert_allclose(table.sum(0), exact.sum(0), rtol=1e-8)
        np.testing.assert_allclose(table, exact, rtol=1e-7, atol=1e-8 * float(exact.max()))
    assert not found.table[:, -1].any()  # of no rows
    assert (found.table >= 0).all()
    np.testing.assert_allclose(found.root.singular, again.root.singular, rtol=1e-9)
    assert found.root.capacity == pytest.approx(again.root.capacity, rel=1e-11)


@pytest.mark.parametrize("even", [True, False])
def test_columns_are_skipped_by_slot_too(even):
    """Groups of rows, each with columns of its own; where their slots differ nothing is skipped."""
    groups, height, shared, own = 3, 40, 64, 32
    C = gaussian(groups, height, shared + groups * own).double()
    for k in range(groups):
        C[k, :, shared:].view(height, groups, own)[:, [g for g in range(groups) if g != k]] = 0
    slots = (torch.arange(height) % SLOTS).repeat(groups) if even else torch.arange(groups * height) % (SLOTS + 2) % 3
    blocks = [
        block_of(part.flatten(0, 1), of_part.flatten(), groups)
        for part, of_part in zip(C.split(20, 1), slots.view(groups, height).split(20, 1), strict=True)
    ]
    work = GramPass(torch.float64, num_slots=SLOTS)
    found = work.over(blocks)
    gram = found.gram
    assert isinstance(gram, SlotGrams)
    gram.add(blocks)  # to what there is
    flat = C.flatten(0, 1)
    np.testing.assert_allclose(work.whole(found), 2 * flat.T @ flat, atol=1e-11)
    sizes, R = [100, 60], gaussian(160, 160).double()
    exact = torch.zeros(2, SLOTS, dtype=torch.float64)
    accumulate(exact, flat @ (R + R.T), slots, sizes)
    np.testing.assert_allclose(gram.scores(R + R.T, sizes), 2 * exact, rtol=1e-11)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(40, 300), st.integers(2, 40)),
    decay=st.floats(0, 6),
    exponent=st.floats(-8, 2),
    seed=st.integers(0, 100),
)
def test_the_bound_of_scores_by_slot_holds(shape, decay, exponent, seed):
    """The roots of the numbers of terms of G and of a slot's own matrix add."""
    (C, slots), ridge = rows(*shape, decay, seed), 10.0**exponent
    work = GramPass(torch.float64, num_slots=SLOTS)
    found = work.over(list(map(block_of, C.split(17), slots.split(17))))
    gram = work.whole(found)
    bound = gram_error(float(gram.trace()), ridge, 4 * len(C), torch.float64)
    root = root_of_gram(gram, ridge, max(shape), torch.float64)
    sizes = [1, shape[1] - 1]
    exact, read = brute(C, slots, sizes, ridge).sum(0), found.gram.scores(root.matrix, sizes).sum(0)
    decomposition = 1e-12 * (1 + float(gram.trace()) / ridge)
    assert ((read - exact).abs() <= (min(bound, 1e9) + decomposition) * exact + 1e-300).all()


def test_a_precision_too_low_is_given_up_by_slot():
    C, slots = rows(400, 20, decay=1)
    trace = float(C.square().sum())
    source = Steps(lambda start: [block_of(C, slots)])
    for accuracy, ridge, dtype in ((1e-3, trace, torch.float32), (1e-9, trace, torch.float64), (1e-12, 1e-6, None)):
        root = root_from_gram(source, ridge, len(C), accuracy, num_slots=SLOTS)
        assert (root.matrix.dtype if root else None) == dtype
    found = solved([block_of(C, slots)], [20], 1e-9, 1e-12)
    assert not read_by_slot(found)  # an orthogonal factorisation
    np.testing.assert_allclose(found.table, brute(C, slots, [20], 1e-9), rtol=1e-9)


def test_scores_are_read_off_rows_where_only_g_is_accurate_enough():
    C, slots = rows(400, 20, decay=1)
    trace, accuracy = float(C.square().sum()), 1e-9
    ridge = next(
        r for r in np.geomspace(1e-9, 1, 1000) * trace if gram_error(trace, r, len(C), torch.float64) < accuracy
    )
    for factor, by_slot in ((1.1, False), (1 + SLOTS**-0.5 + 0.1, True)):
        found = solved([block_of(C, slots)], [15, 5], factor * ridge, accuracy)
        assert read_by_slot(found) == by_slot
        assert found.root.polar.numel() == 0  # no orthogonal factorisation
        np.testing.assert_allclose(found.table, brute(C, slots, [15, 5], factor * ridge), rtol=1e-8)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12, bias=False), nn.Tanh(), nn.Linear(12, 3))


@pytest.fixture
def readings(monkeypatch) -> list[SlotGrams]:
    """Every reading of scores by slot."""
    seen, read = [], SlotGrams.scores
    monkeypatch.setattr(SlotGrams, "scores", lambda self, *given: (seen.append(self), read(self, *given))[1])
    return seen


@pytest.mark.parametrize("coordinates", ["log", "plain"])
@pytest.mark.parametrize("ridge", [1e-4, 0.1, "auto"])
@pytest.mark.parametrize("metric", ["identity", "covariance"])
def test_the_answer_does_not_say_which_way_it_took(readings, ridge, coordinates, metric):
    """Tables, biases, spectra, totals on half of the examples: all come from Gram matrices by slot too."""
    model, x = seeded_module(network), gaussian(90, 4)
    model[0].weight.data[2] = 0

    def answer(share: float) -> Allocation:
        solver = Dense(kept_share=share, coordinates=coordinates)
        return measure(model, x, metric=metric, ridge=ridge, batch_size=20, solver=solver)

    found, plain = answer(0.5), answer(0.0)
    assert len(readings) == 1
    for name in ("table", "by_parameter", "capacity", "bias"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.spectrum.eigenvalue, plain.spectrum.eigenvalue, rtol=1e-9)
    assert found.attrs["notes"] == plain.attrs["notes"]
    for name in ("half_examples", "half_total", "rank", "tolerance"):
        assert found.attrs[name] == pytest.approx(plain.attrs[name], rel=1e-9), name


def test_files_and_float32_keep_to_rows(readings, tmp_path):
    """A file would hold many matrices, and products in float32 are cheap beside them."""
    model, x = seeded_module(network), gaussian(90, 4)
    found, plain, coarse = (
        measure(model, x, ridge=1.0, **more)
        for more in ({}, {"run": Run(checkpoint=tmp_path / "run.safetensors")}, {"solver": Dense(accuracy=1e-3)})
    )
    assert len(readings) == 1
    np.testing.assert_allclose(found.table, plain.table, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.by_parameter, coarse.by_parameter, rtol=1e-3)


def planned(size: Size, tensors: int, num_bytes: float = 1e12) -> Plan:
    return size.plan(10 * size.params, "auto", Budget(num_bytes), 0.5, tensors)


def test_the_plan_keeps_grams_where_they_pay_and_fit():
    size = Size(examples=40, outputs=10, slots=64, params=1000)
    assert planned(size, 6).by_slot
    assert not planned(size, 6).keep
    assert planned(size, 6).num_bytes > planned(size, 0).num_bytes - size.stored_bytes + size.by_slot_bytes - 1
    assert not planned(size, 0).by_slot  # not asked for
    assert not planned(size, 400).by_slot  # one product for each tensor
    few = Size(examples=work_plan.ROWS_OF_SLOT // 10, outputs=10, slots=64, params=1000)
    assert not planned(few, 1).by_slot
    assert not planned(Size(40, 10, 2, 1000), 6).by_slot  # fewer rows than parameters
    tight = size.solver_bytes + 2 * size.by_slot_bytes
    assert not planned(size, 6, tight - 1).by_slot
    assert planned(size, 6, tight + 1000).by_slot
