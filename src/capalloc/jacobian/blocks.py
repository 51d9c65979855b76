"""Rows of constraints of all examples, block by block.

Index convention: a block is (rows, params) with rows running over (examples, outputs, directions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capalloc.dense import Block
from capalloc.jacobian.choose import Choice
from capalloc.jacobian.directions import InputMetric
from capalloc.memory import Plan
from capalloc.problem import Problem


@dataclass(frozen=True)
class Constraints:
    """Rows of constraints of all examples, block by block; each pass gives the same rows."""

    problem: Problem
    choice: Choice
    space: InputMetric
    x: Tensor
    plan: Plan
    replay: Callable[[int], AbstractContextManager[None]]

    def __call__(self) -> Iterator[Block]:
        """One pass."""
        for index, x in enumerate(self.x.split(self.plan.batch_size)):
            for directions in self.space.chunks(self.plan.chunk):
                parts = self.choice.jacobian(x, directions, partial(self.replay, index))
                yield self.rows(parts), directions.slots.repeat(_num_rows(parts))

    def __len__(self) -> int:
        """Number of blocks in one pass."""
        batches = math.ceil(len(self.x) / self.plan.batch_size)
        return batches * math.ceil(self.space.num_inputs / self.plan.chunk)

    def rows(self, parts: dict[str, Tensor]) -> Tensor:
        """Parameter tensors side by side, scaled so that C'C is a mean over examples: (rows, params)."""
        columns = [parts[name].flatten(3).flatten(0, 2) for name in self.problem.params]
        rows = torch.cat(columns, dim=1).div_(math.sqrt(len(self.x)))
        if not torch.isfinite(rows.sum()):  # one pass, and no mask as large as the rows
            raise ValueError(
                "the mixed derivative of outputs with respect to parameters and inputs holds NaN or inf; "
                "look for square roots, logarithms or divisions at zero in the model"
            )
        return rows


def _num_rows(parts: dict[str, Tensor]) -> int:
    """Examples times outputs."""
    examples, outputs = next(iter(parts.values())).shape[:2]
    return examples * outputs
