"""Rows of constraints of all examples, block by block.

Index convention: a block is (rows, params) with rows running over (outputs, examples, directions).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capalloc._derivatives.rows import RowMaker
from capalloc._linalg.row_block import RowBlock, block_of
from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem


@dataclass(frozen=True)
class Constraints:
    """Rows of constraints of some examples, block by block; each pass gives the same rows."""

    problem: Problem
    jacobian: RowMaker
    space: InputMetric
    x: Tensor
    batch_size: int
    chunk: int  # directions at a time
    replay: Callable[[int], AbstractContextManager[None]]
    num_examples: int  # over which C'C is a mean
    scale: Tensor | None = None  # (params,), units of the parameters' coordinates; None for all 1

    def __call__(self, start: int = 0) -> Iterator[RowBlock]:
        """One pass, from block `start` on."""
        size = self.batch_size
        first, skipped = divmod(start, self._chunks)
        for index in range(first, math.ceil(len(self.x) / size)):
            x, replay = self.x[index * size : (index + 1) * size], partial(self.replay, index)
            for directions in itertools.islice(self.space.chunks(self.chunk), skipped, None):
                rows = self.rows(self.jacobian(x, directions, replay))
                outputs, examples = rows.shape[:2]
                yield block_of(rows.flatten(0, 2), directions.slots.repeat(outputs * examples), outputs)
            skipped = 0

    def __len__(self) -> int:
        """Number of blocks in one pass."""
        return math.ceil(len(self.x) / self.batch_size) * self._chunks

    @property
    def first_half(self) -> tuple[int, int]:
        """Blocks of the first half of the batches, and their examples; zeros for a single batch."""
        batches = math.ceil(len(self.x) / self.batch_size) // 2
        return batches * self._chunks, batches * self.batch_size

    @property
    def _chunks(self) -> int:
        """Blocks of one batch."""
        return math.ceil(self.space.num_inputs / self.chunk)

    def rows(self, parts: dict[str, Tensor]) -> Tensor:
        """Parameter tensors side by side, scaled so that C'C is a mean over examples: (o, e, d, params)."""
        ordered = [parts[name].transpose(0, 1) for name in self.problem.params]
        sizes = [p.numel() for p in self.problem.params.values()]
        rows = ordered[0].new_empty(*ordered[0].shape[:3], sum(sizes))
        for part, into in zip(ordered, rows.split(sizes, 3), strict=True):
            torch.mul(part, 1 / math.sqrt(self.num_examples), out=into.view(part.shape))
        if self.scale is not None:
            rows *= self.scale
        if not torch.isfinite(rows.sum()):  # one pass, and no mask as large as the rows
            raise ValueError(
                "the mixed derivative of outputs with respect to parameters and inputs holds NaN or inf; "
                "look for square roots, logarithms or divisions at zero in the model"
            )
        return rows
