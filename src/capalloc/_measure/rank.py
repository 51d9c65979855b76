"""The rank of all constraints, from random combinations of them.

Combinations of some examples' constraints take little time and span most. Whether they span all is seen by combinations
of all constraints: with random coefficients, each raises the rank by one as long as anything is missing.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from capalloc._linalg.inverse_root import UNITS_OF_ROUNDING
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import Examples
from capalloc._measure.refine import unmoved

#: Combinations beside as many as there are parameters; examples of a window, and combinations of it; combinations of
#: all constraints that look for what is missing, at first and later.
SPARE, WINDOW, OF_WINDOW, FIRST, LATER = 8, 8, 16, 4, 64


def rank_of(sums: ExampleSums) -> int:
    """Return the rank of all constraints: combinations of all are added until they no longer raise it by their number.

    Combinations of all alone give the same, in as many passes over the examples as there are parameters.
    """
    rows = of_windows(sums.examples, sums.examples.num_params + SPARE)
    found, number, drawn = rank_of_sample(rows), FIRST, 0
    while found < rows.shape[1]:
        rows = torch.cat([rows, sums.noise(1 + drawn, number)])
        before, found = found, rank_of_sample(rows)
        if found < before + number:
            break
        number, drawn = LATER, drawn + 1
    return found


def rank_of_sample(sample: Tensor) -> int:
    """Return the rank of random combinations of rows, (k, params): that of all rows, where k is larger.

    Columns are scaled to length 1, those of rounding alone left out; singular values up to 16 max(k, params) * eps *
    (the largest) are zero: derivatives have more rounding than the decomposition.
    """
    moved = sample[:, ~unmoved(sample, sample.dtype)]
    if not moved.shape[1]:
        return 0
    values = torch.linalg.svdvals(moved / moved.norm(dim=0))
    least = UNITS_OF_ROUNDING * max(sample.shape) * torch.finfo(sample.dtype).eps * values[0]
    return int((values > least).sum())


def of_windows(examples: Examples, number: int) -> Tensor:
    """Return random combinations of the constraints of a few examples each, (number, params), all examples in turn.

    Of the outputs of each example a window has as few combinations as do, its own.
    """
    size = min(WINDOW, len(examples.x))
    outputs = min(math.ceil(WINDOW / size), examples.num_constrained)
    chunk, found = min(OF_WINDOW, examples.vectors), []
    for k in range(math.ceil(number / chunk)):
        first = k * size % (len(examples.x) - size + 1)
        own = replace(examples, x=examples.x[first : first + size], offset=first, batch_size=size, ready=())
        (window,) = replace(own, seed=examples.seed + 1 + k, output_probes=outputs, replay=partial(_same, own, first))()
        found.append(window.adjoint(window.normal_rows(chunk, 3)) / math.sqrt(size))
    return torch.cat(found)[:number].double()


def _same(examples: Examples, first: int, index: int) -> AbstractContextManager[None]:
    """Repeat the random draws of a window, the only batch of its examples."""
    return examples.replay(first + index)
