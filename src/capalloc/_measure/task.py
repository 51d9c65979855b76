"""Model, examples and metric of a measurement, checked together: what both solvers start from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capalloc._derivatives import InputMetric, input_metric
from capalloc._model.checks import check_examples
from capalloc._model.problem import (
    ModelLike,
    OutputSelection,
    ParamSelection,
    Problem,
    iterate_batches,
    prepare,
    seeded,
)
from capalloc._runtime.distributed import Reducer
from capalloc._runtime.memory import Size


@dataclass(frozen=True)
class Task:
    """What both solvers start from."""

    problem: Problem
    space: InputMetric
    x: Tensor
    size: Size
    seed: int
    draws: bool  # random numbers, whenever the model runs
    precision: torch.dtype  # the model's own, or float32 for a smaller one

    def replay(self, index: int) -> AbstractContextManager[None]:
        """The random draws of batch `index`."""
        return seeded(self.seed + index, self.x.device)

    def attrs(self, start: float) -> dict[str, Any]:
        """What is written down whatever the solver."""
        root = self.space.root
        return {
            "kind": "measured",
            "num_params": self.size.params,
            "num_examples": self.size.examples,
            "num_outputs": self.size.outputs,
            "intercept": self.space.intercept,
            "metric": "identity" if root is None else ("variances", "covariance")[root.ndim - 1],
            "seconds": time.perf_counter() - start,
        }


def make_task(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection,
    metric: Tensor | None,
    params: ParamSelection,
    intercept: bool,
    generator: torch.Generator | None,
    reducer: Reducer,
) -> Task:
    """Prepare and check everything; all ranks take the seed of the first."""
    problem = prepare(model, inputs, outputs, params, dtype=torch.float64)
    space = input_metric(metric, problem.probe, bool(intercept))
    seed = reducer.share(_seed(generator))
    x = torch.cat(list(problem.batches(1024)))
    num_outputs, draws = check_examples(problem, x[:2], seed)
    size = Size(len(x), num_outputs, space.num_slots, problem.num_params)
    given = next(iter(iterate_batches(problem.inputs))).dtype
    return Task(problem, space, x, size, seed, draws, torch.promote_types(given, torch.float32))


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return 0
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))
