"""The dense solver: exact scores of all constraints, as an `Allocation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._derivatives import Choice, Constraints, choose_jacobian
from capalloc._derivatives.rounding import Rounded, rounded
from capalloc._linalg.gram_root import GramPass, GramSum, Root, gram_passes, root_of_gram
from capalloc._linalg.halves import Halved, Halves, half_total
from capalloc._linalg.leverage import (
    AllRows,
    ParamUnits,
    Scores,
    ScoreTable,
    Triangle,
    accumulate,
    idle_columns,
    inverse_root,
    polar_factor,
)
from capalloc._linalg.row_block import RowBlock, block_of
from capalloc._measure.forecast import forecast_dense, progress_bar
from capalloc._measure.task import Task
from capalloc._measure.work_plan import Size
from capalloc._model.input_metric import InputMetric
from capalloc._model.magnitudes import magnitudes, magnitudes_without_zeros, notes_of_zeros
from capalloc._model.problem import Problem
from capalloc._runtime.steps import Steps
from capalloc._settings import Dense, Run
from capalloc.results.allocation import Allocation
from capalloc.results.view import named as listed

#: Examples on which a way to the mixed derivative is tried and checked.
TRIAL_EXAMPLES = 3
#: A numerical rank is called unclear when the singular values on its two sides differ by less than this factor.
CLEAR_GAP = 10.0
#: Share of a total that half of the examples may lack before the result says that it still moves.
STILL_MOVES = 0.01
#: Dataclasses of the states that are kept in files, and of the passes that rank 0 asks for.
DENSE_TYPES = (Root, Scores, GramSum, RowBlock, Halved)
DENSE_PASSES = (GramPass, Triangle, ScoreTable, AllRows, Halves)


def measure_dense(task: Task, ridge: float, settings: Dense, run: Run, steps: Steps) -> Allocation:
    """Return the exact capacity."""
    size, x, reducer = task.size, task.x, steps.reducer
    size.beside_solver(task.budget)
    few, replay = x[: 1 if task.draws else TRIAL_EXAMPLES], partial(task.replay, 0)
    choice = choose_jacobian(task.problem, few, replay)
    numbers = choice.forecast(size.outputs, size.params)
    first = next(gram_passes(ridge, size.rows, settings.accuracy), None)  # float32 takes less with rows
    by_slot = steps.alone and x.device.type == "cpu" and first is not None and first.dtype == torch.float64
    tensors = len(task.problem.params) if by_slot else 0
    plan = steps.agree("plan", lambda: size.plan(numbers, task.batch_size, task.budget, settings.kept_share, tensors))
    expected = steps.agree("forecast", lambda: forecast_dense(task, choice, plan, ridge, reducer.size))
    if reducer.rank == 0:
        expected.announce(run.progress)
    own, is_log = reducer.shard(size.examples), settings.coordinates == "log"
    constraints = Constraints(
        *(task.problem, choice.jacobian, task.space, x[own], plan.batch_size, plan.chunk),
        replay=lambda index: task.replay(own.start + index),
        num_examples=size.examples,
        scale=magnitudes(task.problem.params) if ridge and is_log else None,
    )
    at_a_time = 1 if task.draws else -(-plan.batch_size * plan.chunk // 2)  # two directions of each
    digits = None if ridge else rounded(task.problem, choice.jacobian, x, len(few), at_a_time, task.replay)
    units = None if digits is None else replace(units_of(task.problem.params, is_log), filled=digits.filled)
    total = (1 if plan.keep or plan.by_slot else 2) * len(constraints)
    with progress_bar(run.progress, reducer.rank, total=total) as bar:
        steps = steps.over(Rows(constraints, plan.keep and not size.wide, bar.update))
        scores = steps.lead("answer", lambda: solve(steps, task, ridge, settings.accuracy, units, plan.by_slot).small())
    attrs = {
        "solver": "dense",
        "rank": scores.root.rank,
        "tolerance": scores.root.tolerance,
        "ridge": ridge,
        "coordinates": settings.coordinates,
        "accuracy": settings.accuracy,
        "precision": str(scores.root.matrix.dtype).removeprefix("torch."),
        "differentiation": choice.name,
        "batch_size": plan.batch_size,
        "forecast_bytes": expected.num_bytes,
        "forecast_seconds": expected.seconds,
        "notes": _notes(choice, scores, size, digits) + notes_of_zeros(constraints.scale),
    }
    if scores.idle is not None:
        attrs["unused_params"] = scores.idle
    if scores.root.half_examples:
        attrs |= {"half_examples": scores.root.half_examples, "half_total": scores.root.half_capacity}
    if ridge == 0:
        attrs |= size.limits(scores.root.rank)[1]
    return _allocation(scores, task.problem, task.space, task.attrs() | attrs)


@dataclass
class Rows:
    """Rows of constraints, kept once a pass over all of them has come to its end, with a tick for each block made."""

    made: Constraints
    keep: bool
    tick: Callable[[], object]
    kept: list[RowBlock] = field(default_factory=list)

    @property
    def first_half(self) -> tuple[int, int]:
        """Blocks and examples of the first half."""
        return self.made.first_half

    def __call__(self, start: int = 0) -> Iterator[RowBlock]:
        """Yield the blocks from one on."""
        if self.kept:
            yield from self.kept[start:]
            return
        fresh = []
        for block in self.made(start):
            if self.keep:
                fresh.append(block)
            yield block
            self.tick()
        self.kept = [] if start else fresh


def units_of(params: Mapping[str, Tensor], is_log: bool) -> ParamUnits:
    """Units of parameters: those of log|theta|, or all 1, and usual magnitudes."""
    sizes, usual = magnitudes_without_zeros(params), magnitudes_without_zeros(params, zero=1.0)
    return ParamUnits(sizes if is_log else torch.ones_like(sizes), usual)


def solve(
    steps: Steps, task: Task, ridge: float, accuracy: float, units: ParamUnits | None = None, by_slot: bool = False
) -> Scores:
    """Return the scores of all constraints, on the smaller side of their matrix.

    Without a ridge joint entries are those of the coordinates of these `units` (`_linalg.leverage`).
    """
    sizes = [p.numel() for p in task.problem.params.values()]
    size = task.size
    if size.wide:
        return scores_in_memory(steps, sizes, size.slots, ridge, accuracy, units)
    return scores_in_passes(steps, sizes, size.slots, size.rows, ridge, accuracy, size.examples, units, by_slot)


def scores_in_memory(
    steps: Steps, sizes: Sequence[int], num_slots: int, ridge: float, accuracy: float, units: ParamUnits | None = None
) -> Scores:
    """Return the scores of a wide matrix from all its rows; one process solves for all."""
    parts = steps.gather(AllRows(), "rows")
    C, slots = torch.cat([block.rows for block in parts]), torch.cat([block.slots for block in parts])
    transposed = Steps(lambda start: [block_of(C.T, slots)])
    root = root_from_gram(transposed, ridge, C.shape[1], accuracy)
    if root is None:
        polar, root = polar_factor(C, ridge, units=units)
    else:
        polar = root.matrix @ C.to(root.matrix.dtype)
    table = C.new_zeros(len(sizes), num_slots)
    accumulate(table, polar, slots, sizes)
    return Scores(table, root, None if ridge else idle_columns(polar))


def scores_in_passes(
    steps: Steps,
    sizes: Sequence[int],
    num_slots: int,
    num_rows: int,
    ridge: float,
    accuracy: float,
    num_examples: int = 0,
    units: ParamUnits | None = None,
    by_slot: bool = False,
) -> Scores:
    """Return the scores of a tall matrix in two passes over its blocks: one factors it, one reads the scores off.

    With a ridge and `by_slot` a first one in float64 keeps Gram matrices by slot, and there is no second where these
    are accurate enough.

    With a ridge, products are taken in the lowest precision that keeps the relative error of capacities within
    `accuracy` by `gram_error`: float32, float64, or those of an orthogonal factorisation. Where the source has a first
    half, the total on it comes along.
    """
    kept = num_slots if by_slot else 0
    root = steps.once("root", lambda: root_of_rows(steps, ridge, num_rows, accuracy, num_examples, units, kept))
    if root.slots is not None:
        return Scores(root.slots.scores(root.matrix, sizes), root)
    (table,) = steps.fold("table", ScoreTable(root.matrix, tuple(sizes), num_slots))
    return Scores(table, root, idle_columns(root.polar) if len(root.polar) else None)


def root_of_rows(
    steps: Steps,
    ridge: float,
    num_rows: int,
    accuracy: float,
    num_examples: int = 0,
    units: ParamUnits | None = None,
    num_slots: int = 0,
) -> Root:
    """Return (G + ridge)^(-1/2), by G where that is accurate enough, else by a triangular factor."""
    root = root_from_gram(steps, ridge, num_rows, accuracy, num_examples, num_slots)
    if root is None:
        found = steps.fold("triangular factor, whole and half", Halves(Triangle()))
        (factor,) = found.whole
        root = inverse_root(factor, ridge, max(num_rows, factor.shape[1]), units=units)
        root = _with_half(root, found, found.half, ridge, num_rows, num_examples, units)
    return root


def root_from_gram(
    steps: Steps, ridge: float, num_rows: int, accuracy: float, num_examples: int = 0, num_slots: int = 0
) -> Root | None:
    """Return (G + ridge)^(-1/2) from G, in the lowest precision that is accurate enough; None if none is.

    With a number of slots G by slot comes along from float64.
    """
    for work in gram_passes(ridge, num_rows, accuracy, num_slots):
        found = steps.fold(f"Gram matrix in {work.dtype}, whole and half", Halves(work))
        gram = work.whole(found.whole)
        if gram is not None:
            root = root_of_gram(gram, ridge, max(num_rows, len(gram)), work.dtype)
            root = replace(root, slots=work.by_slot(found.whole))
            half = None if found.half is None else work.whole(found.half)
            return _with_half(root, found, half, ridge, num_rows, num_examples)
    return None


def _with_half(
    root: Root,
    found: Halved,
    half: Any,
    ridge: float,
    num_rows: int,
    num_examples: int,
    units: ParamUnits | None = None,
) -> Root:
    """Add the total on the first half of the examples, where it is known."""
    if half is None or not num_examples:
        return root
    scale = num_examples / found.examples
    size = max(round(num_rows / scale), root.matrix.shape[1])
    return replace(root, half_examples=found.examples, half_capacity=half_total(half, ridge, scale, size, units))


def _notes(choice: Choice, scores: Scores, size: Size, digits: Rounded | None) -> list[str]:
    notes = list(choice.reasons)
    root = scores.root
    least, largest = root.edge
    if digits is not None and digits.names:
        notes.append(
            f"constraints of {listed(digits.names)} are rounding in part, which a change in the last digit changes: "
            "that counts for nothing"
        )
    if digits is not None and root.rank and 0 < least < digits.known_to * largest:
        notes.append(
            f"the numerical rank is unclear: singular values down to {least / largest:.2g} of the largest count, and "
            f"rounding moves them by {digits.known_to:.2g}; a small ridge makes it smooth"
        )
    elif root.rank and digits is not None and root.dropped * CLEAR_GAP > least:
        notes.append(
            f"the numerical rank is unclear: singular values {least:.2g} (counted) and "
            f"{root.dropped:.2g} (not), largest {largest:.2g}; a small ridge makes it smooth"
        )
    if root.half_examples and root.half_capacity < (1 - STILL_MOVES) * root.capacity:
        notes.append(
            f"not settled: the first {root.half_examples} of {size.examples} examples give {root.half_capacity:.5g}, "
            f"{1 - root.half_capacity / root.capacity:.1%} less; more examples would add to the total"
        )
    return notes + ([] if digits is None else size.limits(root.rank)[0])


def _allocation(scores: Scores, problem: Problem, space: InputMetric, attrs: dict[str, Any]) -> Allocation:
    places = problem.places
    axes, n = places.dims, places.number
    names = list(problem.params)
    values = places.pooled(scores.table.cpu())
    eigenvalues = scores.root.singular.square().cpu().numpy()
    bias = values[:, n:].sum(1)
    inner = values[:, :n].reshape(-1, *places.shape)
    return Allocation(
        capacity=xr.DataArray(inner.sum(0).numpy(), dims=axes),
        bias=float(bias.sum()),
        by_parameter=xr.DataArray(values.sum(1).numpy(), dims="parameter", coords={"parameter": names}),
        table=xr.DataArray(
            inner.numpy(),
            dims=("parameter", *axes),
            coords={"parameter": names, "bias": ("parameter", bias.numpy())},
        ),
        attrs=attrs,
        spectrum=xr.DataArray(np.ones(len(eigenvalues)), dims="node", coords={"eigenvalue": ("node", eigenvalues)}),
    )
