"""The dense solver's answer to a measurement as an `Allocation`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from capalloc._derivatives import Choice, Constraints, InputMetric, choose_jacobian
from capalloc._linalg.leverage import ACCURACY, Blocks, Scores, cached, score_in_memory, score_in_passes
from capalloc._linalg.row_block import RowBlock
from capalloc._measure.forecast import forecast_dense
from capalloc._measure.task import Task
from capalloc._model.problem import Problem, axis_names
from capalloc._runtime.memory import Plan, Size, check_solver, make_plan
from capalloc._runtime.passes import Passes
from capalloc.results.allocation import Allocation

#: Examples on which a way to the mixed derivative is tried and checked.
TRIAL_EXAMPLES = 3
#: A numerical rank is called unclear when the singular values on its two sides differ by less than this factor.
CLEAR_GAP = 10.0


@dataclass(frozen=True)
class Settings:
    """What the dense solver is told; `accuracy` is the relative error that rounding may leave, checked once."""

    ridge: float = 0.0
    batch_size: int | str = "auto"
    accuracy: float = ACCURACY
    progress: bool | None = False


def measure_dense(task: Task, settings: Settings, start: float, passes: Passes) -> Allocation:
    """Exact scores of all constraints."""
    size, x, ridge = task.size, task.x, settings.ridge
    check_solver(size, x.device)
    choice = choose_jacobian(task.problem, x[: 1 if task.draws else TRIAL_EXAMPLES], partial(task.replay, 0))
    forecast = choice.forecast(size.outputs, size.params)
    plan = passes.once("plan", lambda: make_plan(size, forecast, settings.batch_size, x.device))
    expected = passes.once("forecast", lambda: forecast_dense(task, choice, plan, ridge, passes.reducer.size))
    if passes.reducer.rank == 0:
        expected.announce(settings.progress)
    own = passes.reducer.shard(size.examples)
    constraints = Constraints(
        task.problem,
        choice.jacobian,
        task.space,
        x[own],
        plan.batch_size,
        plan.chunk,
        lambda index: task.replay(own.start + index),
        size.examples,
    )
    scores = passes.once("answer", lambda: solve(constraints, size, plan, settings, passes).small())
    attrs = {
        "solver": "dense",
        "rank": scores.root.rank,
        "tolerance": scores.root.tolerance,
        "ridge": float(ridge),
        "accuracy": settings.accuracy,
        "precision": str(scores.root.matrix.dtype).removeprefix("torch."),
        "differentiation": choice.name,
        "batch_size": plan.batch_size,
        "forecast_bytes": expected.num_bytes,
        "forecast_seconds": expected.seconds,
        "notes": _notes(choice, scores, size, ridge),
    }
    return _allocation(scores, task.problem, task.space, task.attrs(start) | attrs)


def solve(constraints: Constraints, size: Size, plan: Plan, settings: Settings, passes: Passes) -> Scores:
    """Scores of all constraints, on the smaller side of their matrix."""
    sizes = [p.numel() for p in constraints.problem.params.values()]
    total = (1 if plan.keep else 2) * len(constraints)
    hidden = passes.reducer.rank > 0 or (None if settings.progress is None else not settings.progress)
    with tqdm(total=total, desc="measure", disable=hidden) as bar:
        blocks = watched(constraints, bar.update)
        if size.wide:
            return score_in_memory(blocks, sizes, size.slots, settings.ridge, settings.accuracy, passes)
        blocks = cached(blocks) if plan.keep else blocks
        return score_in_passes(blocks, sizes, size.slots, size.rows, settings.ridge, settings.accuracy, passes)


def watched(blocks: Blocks, tick: Callable[[], Any]) -> Blocks:
    """The same blocks, with a tick after each."""

    def again(*start: int) -> Iterator[RowBlock]:
        for block in blocks(*start):
            yield block
            tick()

    return again


def _notes(choice: Choice, scores: Scores, size: Size, ridge: float) -> list[str]:
    notes = list(choice.reasons)
    root = scores.root
    if root.rank and ridge == 0 and root.dropped * CLEAR_GAP > float(root.singular[-1]):
        notes.append(
            f"the numerical rank is unclear: singular values {float(root.singular[-1]):.2g} (counted) and "
            f"{root.dropped:.2g} (not), largest {float(root.singular[0]):.2g}; a small ridge makes it smooth"
        )
    if size.wide and ridge == 0:
        notes.append(f"{size.rows} rows of constraints for {size.params} parameters: limited by the data")
    return notes


def _allocation(scores: Scores, problem: Problem, space: InputMetric, attrs: dict[str, Any]) -> Allocation:
    axes = axis_names(len(space.shape))
    n = space.num_inputs
    names = list(problem.params)
    values = scores.table.cpu()
    eigenvalues = scores.root.singular.square().cpu().numpy()
    bias = values[:, n:].sum(1)
    inner = values[:, :n].reshape(-1, *space.shape)
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
