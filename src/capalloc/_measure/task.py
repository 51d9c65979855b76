"""The task of a measurement: model, examples and metric, checked together, which both solvers start from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._measure.work_plan import Size
from capalloc._model.checks import check_examples
from capalloc._model.examples_digest import digest_of_examples
from capalloc._model.given_examples import iterate_batches
from capalloc._model.input_metric import InputMetric, InputMetricLike, input_metric
from capalloc._model.input_moments import note_of_still
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare, seeded
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.distributed import Local, Reducer
from capalloc._runtime.memory import Budget, budget_of
from capalloc.results.allocation import Allocation


@dataclass(frozen=True)
class Task:
    """Model, examples, metric, and the limits of the work on them."""

    problem: Problem
    space: InputMetric
    x: Tensor
    size: Size
    seed: int
    draws: bool  # random numbers, whenever the model runs
    precision: torch.dtype  # the model's own, or float32 for a smaller one
    batch_size: int | str
    budget: Budget
    started: float

    def replay(self, index: int) -> AbstractContextManager[None]:
        """Repeat the random draws of batch `index`."""
        return seeded(self.seed + index, self.x.device)

    def attrs(self) -> dict[str, Any]:
        """Return what is written down whatever the solver."""
        return {
            "kind": "measured",
            "num_params": self.size.params,
            "parameter_sizes": self.problem.parameter_sizes,
            "num_examples": self.size.examples,
            "data_digest": digest_of_examples(self.x),
            "num_outputs": self.size.outputs,
            "intercept": self.space.intercept,
            "metric": self.space.word,
            "seconds": time.perf_counter() - self.started,
        }


def make_task(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    metric: InputMetricLike = DEFAULT_METRIC,
    intercept: bool = True,
    params: ParamSelection = None,
    *,
    generator: torch.Generator | None = None,
    batch_size: int | str = "auto",
    max_bytes: float | None = None,
    reducer: Reducer | None = None,
) -> Task:
    """Prepare and check everything; all ranks take the seed of the first."""
    started = time.perf_counter()
    problem = prepare(model, inputs, outputs, params, dtype=torch.float64, by_input=True)
    seed = (reducer or Local()).share(_seed(generator))
    x = torch.cat(list(problem.batches(1024)))
    space = input_metric(metric, problem, bool(intercept))
    num_outputs, draws = check_examples(problem, x[:2], seed)
    size = Size(len(x), num_outputs, space.num_slots, problem.num_params)
    given = next(iter(iterate_batches(problem.inputs))).dtype
    precision = torch.promote_types(given, torch.float32)
    return Task(problem, space, x, size, seed, draws, precision, batch_size, budget_of(x.device, max_bytes), started)


def with_notes(found: Allocation, problem: Problem, inputs: Tensor | Iterable[Any]) -> Allocation:
    """Name in notes what parameters are left out, and the inputs that hold capacity without ever varying.

    Several inputs get their names beside them.
    """
    places = problem.places
    said = [*problem.notes, *note_of_still(inputs, torch.as_tensor(found.capacity.to_numpy()), places)]
    if not said and not places.inputs:
        return found
    attrs = {**found.attrs, "notes": [*found.attrs["notes"], *said]} | places.attrs
    return found.replace(attrs=attrs, capacity=found.capacity.assign_coords(places.coords))


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return 0
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))
