"""Constraints that are nothing but rounding: those that inputs and parameters changed in their last digits change.

The mean of a norm takes a bias away, and what is left of its derivative is the rounding of a subtraction, of any size
where the norm divides by a small deviation. No threshold tells it from a small constraint; a change of all numbers
by some units of rounding does, as it leaves every true constraint nearly as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capalloc._derivatives.rows import RowMaker
from capalloc._derivatives.trust import moved
from capalloc._linalg.inverse_root import UNITS_OF_ROUNDING
from capalloc._model.input_metric import Directions
from capalloc._model.problem import Problem

#: Units of rounding by which numbers change, the relative change of a column that rounding fills, and its largest size
#: beside that of the largest column.
UNITS, FILLED_FROM, FILLED_UP_TO = 64, 0.1, 1e-6


@dataclass(frozen=True)
class Rounded:
    """Columns that a change in the last digits changes by a tenth, and what it does to the others."""

    filled: Tensor  # (params,), columns that rounding fills
    names: tuple[str, ...]  # of the tensors with some that would be told from rounding by no size
    known_to: float  # relative change of the other columns, together


@contextmanager
def nudged(problem: Problem, x: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Let parameters grow in their last digits for a while, each tensor alike, and give examples that have grown so.

    What is equal stays equal, so that the same entry of several wins a maximum, and no number falls below a whole one.
    """
    random, step = torch.Generator().manual_seed(seed), UNITS * torch.finfo(x.dtype).eps
    draw = lambda: 1 + float(torch.rand((), generator=random))  # noqa: E731
    with moved(problem, {name: draw() * p.detach() for name, p in problem.params.items()}, step):
        yield x * (1 + step * draw())


def rounded(
    problem: Problem, rows: RowMaker, x: Tensor, few: int, replay: Callable[[int], AbstractContextManager[None]]
) -> Rounded:
    """Compare rows of constraints, along a random direction and the radial one, with changed ones.

    On the first `few` examples; on all of them where a column looks filled, as that of a unit that is saturated on few
    does.
    """
    shared = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    directions = Directions(shared, True, torch.zeros(2, dtype=torch.long))
    size = change = torch.zeros(0)
    for first in range(0, len(x), few):
        part, again = x[first : first + few], partial(replay, first)
        own = _side_by_side(problem, rows(part, directions, again))
        near = []
        for seed in range(2):
            with nudged(problem, part, seed) as at:
                near.append(_side_by_side(problem, rows(at, directions, again)))
        # A derivative that jumps here, as at a kink, is the same near by.
        changes = [(a - b).square().sum(0) for a, b in ((own, near[0]), (near[0], near[1]))]
        found = own.square().sum(0), torch.minimum(*changes)
        size, change = found if not first else (size + found[0], change + found[1])
        every = torch.where(size > 0, change / torch.where(size > 0, size, 1.0), 0.0).sqrt()
        filled = (every > FILLED_FROM) & (size < FILLED_UP_TO**2 * size.amax())
        if not bool(filled.any()):
            break
    sizes = [p.numel() for p in problem.params.values()]
    large = filled & (size > (UNITS_OF_ROUNDING * torch.finfo(x.dtype).eps) ** 2 * size.amax())
    names = tuple(n for n, part in zip(problem.params, large.split(sizes), strict=True) if bool(part.any()))
    return Rounded(filled, names, float(every[~filled].square().sum().sqrt()))


def _side_by_side(problem: Problem, parts: Mapping[str, Tensor]) -> Tensor:
    """Join the rows of a few examples, (rows, params)."""
    each = (parts[name] for name in problem.params)
    return torch.cat([part.reshape(math.prod(part.shape[:3]), -1) for part in each], 1)


def beyond_rounding(a: Tensor, b: Tensor, near: tuple[Tensor, Tensor]) -> bool:
    """Tell whether two differ by more than what a change in the last digits makes of them."""
    a, b, moved_a, moved_b = (t.flatten() for t in (a, b, *near))
    noise = torch.linalg.vector_norm(moved_a - a) + torch.linalg.vector_norm(moved_b - b)
    return bool(torch.linalg.vector_norm(a - b) > noise / FILLED_FROM)
