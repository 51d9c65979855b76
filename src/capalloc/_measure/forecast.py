"""Forecasts of what a measurement takes, memory and time, and its progress."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tqdm.auto import tqdm

from capalloc._derivatives import Choice
from capalloc._derivatives.tape import Tape
from capalloc._measure.examples import Examples
from capalloc._measure.task import Task
from capalloc._measure.work_plan import Plan
from capalloc._model.problem import Problem
from capalloc._runtime.memory import gib
from capalloc._runtime.terminal import is_watched

#: Directions along which one example is timed, at most.
TIMED_DIRECTIONS = 64
#: Rows and columns of the matrices whose product is timed.
TIMED_ROWS = 384
#: Operations of the dense solver at the speed of a matrix product, in units of its longer side times the shorter one
#: squared (Gram matrix or triangular factor, then scores) and of the shorter one cubed (root): with a ridge, with Gram
#: matrices by slot, and without a ridge, where the joint entries take a second decomposition.
WITH_RIDGE, BY_SLOT, WITHOUT = (3.0, 10.0), (2.0, 10.0), (6.0, 40.0)
#: What work on the graph takes: forward and backward passes of all examples, as of large networks, seconds of each
#: operator, as of small ones and recurrences, and seconds that are spent once. They are of a few networks, and rough.
GRAPH_WORK = {
    "channels": (0.7, 0.0, 0.02),
    "paths": (4, 3e-4, 0.05),
    "depth": (30, 4.5e-3, 0.1),
    "field": (20, 2.5e-3, 0.1),
    "scores": (22, 2.3e-3, 0.05),
}
EXAMPLES_TIMED, TIMES = 64, 3
#: Operators that each module stands for, where every part of an answer captures a graph of its own.
NODES_OF_MODULE = 6
#: Seconds below which nobody needs a forecast.
SHORT_WAIT = 5.0


@dataclass(frozen=True)
class Forecast:
    """Memory and time of a run."""

    num_bytes: float
    seconds: float

    def announce(self, progress: bool | None, of: str = "in all") -> None:
        """Say it on the standard error, where a progress bar is shown."""
        if progress or (progress is None and is_watched()):
            text = f"measure: forecast {gib(self.num_bytes)} of memory, about {duration(self.seconds)} {of}"
            tqdm.write(text, file=sys.stderr)


def progress_bar(progress: bool | None, rank: int, **options: Any) -> tqdm[Any]:
    """Return a bar on the standard error of rank 0: shown, hidden, or (None) shown on a terminal."""
    return tqdm(desc="measure", disable=rank > 0 or not (is_watched() if progress is None else progress), **options)


def forecast_dense(task: Task, choice: Choice, plan: Plan, ridge: float, ranks: int) -> Forecast:
    """Forecast the dense solver, by timing one example and one matrix product, and counting operations."""
    size = task.size
    passes = 1 if plan.keep or plan.by_slot else 2
    rows = passes * size.examples * seconds_of_example(task, choice, plan)
    large, small = max(size.rows, size.params), min(size.rows, size.params)
    per_row, per_column = BY_SLOT if plan.by_slot else WITH_RIDGE if ridge else WITHOUT
    shared = 1 if size.wide else ranks  # one process solves for all
    work = per_row / shared * large * small**2 + per_column * small**3
    return Forecast(plan.num_bytes, rows / ranks + work * seconds_of_operation(task.x.device))


def seconds_of_example(task: Task, choice: Choice, plan: Plan) -> float:
    """Time all rows of one example."""
    directions = next(task.space.chunks(min(plan.chunk, TIMED_DIRECTIONS)))
    began = _now(task.x.device)
    choice.jacobian(task.x[:1], directions, lambda: task.replay(0))
    return (_now(task.x.device) - began) * task.size.slots / len(directions.slots)


def seconds_of_operation(device: torch.device) -> float:
    """Time an addition or a multiplication, in a product of float64 matrices; once for a device and its threads."""
    return _timed_operation(device, torch.get_num_threads())


@cache
def _timed_operation(device: torch.device, threads: int) -> float:
    matrix = torch.ones(TIMED_ROWS, TIMED_ROWS, dtype=torch.float64, device=device)
    torch.mm(matrix, matrix)
    began = _now(device)
    torch.mm(matrix, matrix)
    return (_now(device) - began) / (2 * TIMED_ROWS**3)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def _now(device: torch.device) -> float:
    """Wait until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of_product(examples: Examples, vectors: int) -> float:
    """Time C and C' of the first batch times so many vectors."""
    batch = next(examples())
    w = examples.in_units(examples.normal_params(-2, vectors))
    began = time.perf_counter()
    batch.adjoint(batch.apply(w))
    return time.perf_counter() - began


def check_seconds(seconds: float | None) -> None:
    """Refuse a time that is none."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be a positive number, got {seconds!r}")


def over_limit(seconds: float, limit: float | None, name: str = "max_seconds") -> list[str]:
    """Return the note on a limit that was passed by more than a factor of two: there is a least that calls take."""
    if limit is None or seconds <= 2 * limit:
        return []
    return [f"{name}={limit:g} was not held: about {seconds:.2g} s is the least for this model and these examples"]


def pass_seconds(problem: Problem) -> tuple[float, int]:
    """Time a forward and backward pass by example, in the operations that the work is done in; and count the outputs.

    A recurrent layer is one fused operation of a model, and many small ones of its derivatives.
    """
    batch, taken = next(iter(problem.batches(EXAMPLES_TIMED))).clone().requires_grad_(), math.inf
    for _ in range(TIMES):  # the first one sets buffers up
        began = _now(batch.device)
        with torch.enable_grad(), Tape():
            returned = problem(batch)
            if returned.requires_grad:
                torch.autograd.grad(returned.sum(), batch, allow_unused=True)
        taken = min(taken, _now(batch.device) - began)
    return taken / len(batch), returned.shape[1]


def num_nodes(problem: Problem) -> int:
    """Count operators of the exported program; about as many as graphs of all parts cost where there is none."""
    if problem.program is None:
        return NODES_OF_MODULE * sum(1 for _ in problem.model.modules())
    return len(problem.program.graph.nodes)


def graph_seconds(what: str, of_pass: float, nodes: int) -> float:
    """Forecast work on a graph of so many operators, where a pass of all examples takes `of_pass` seconds."""
    passes, of_node, once = GRAPH_WORK[what]
    return once + passes * of_pass + of_node * nodes


def announce_graph(who: str, what: str, problem: Problem, nodes: int, examples: int, progress: bool) -> None:
    """Say how long work on the graph takes, where progress is shown."""
    if progress:
        announce(who, graph_seconds(what, pass_seconds(problem)[0] * examples, nodes), progress)


def announce(who: str, seconds: float, progress: bool, more: str = "") -> None:
    """Say on the standard error how long it takes, where progress is shown and it is long enough to ask."""
    if progress and seconds > SHORT_WAIT:
        tqdm.write(f"{who}: forecast about {duration(seconds)}{more}", file=sys.stderr)
