"""Constraints that are nothing but rounding: those that inputs and parameters changed in their last digits change.

The mean of a norm takes a bias away, and what is left of its derivative is the rounding of a subtraction, of any size
where the norm divides by a small deviation. No threshold tells it from a small constraint; a change of all numbers
by some units of rounding does, as it leaves every true constraint nearly as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class _NudgedRows:
    """Rows along a random direction and the radial one, (examples, rows, params), as they are and nudged."""

    problem: Problem
    rows: RowMaker
    x: Tensor
    replay: Callable[[int], AbstractContextManager[None]]

    def own(self, batch: Tensor, x: Tensor | None = None) -> Tensor:
        shape, random = self.x[:1].shape, torch.Generator().manual_seed(0)
        shared = torch.randn(shape, generator=random, dtype=self.x.dtype).to(self.x.device)
        directions = Directions(shared, True, torch.zeros(2, dtype=torch.long))
        parts = self.rows(self.x[batch] if x is None else x, directions, partial(self.replay, int(batch[0])))
        rows = [parts[name].flatten(1, 2) for name in self.problem.params]
        return torch.cat([r.reshape(*r.shape[:2], math.prod(r.shape[2:])) for r in rows], 2)

    def moved(self, batch: Tensor) -> Tensor:
        """Squares of each column, and of its change: (2, params)."""
        own, near = self.own(batch), []
        for seed in range(2):
            with nudged(self.problem, self.x[batch], seed) as x:
                near.append(self.own(batch, x))
        # A derivative that jumps here, as at a kink, is the same near by.
        changes = [(a - b).square().sum((0, 1)) for a, b in ((own, near[0]), (near[0], near[1]))]
        return torch.stack([own.square().sum((0, 1)), torch.minimum(*changes)])


def rounded(
    problem: Problem,
    rows: RowMaker,
    x: Tensor,
    few: int,
    at_a_time: int,
    replay: Callable[[int], AbstractContextManager[None]],
) -> Rounded:
    """Find the columns of constraints that changed digits change, on the first `few` examples.

    Where one looks filled there, as that of a unit that is saturated on few does, its size on all is asked, and
    while the change seen is too small for that, others are compared, those with most of such columns first.
    """
    made, order = _NudgedRows(problem, rows, x, replay), torch.arange(len(x), device=x.device)
    size, change = seen = made.moved(order[:few])
    small, open_ = lambda: size < FILLED_UP_TO**2 * size.amax(), lambda: change <= FILLED_FROM**2 * size
    suspect = small() & ~open_()
    if bool(suspect.any()) and len(x) > few:
        most = []
        for batch in order[few:].split(at_a_time):
            each = made.own(batch).square().sum(1)
            size = size + each.sum(0)
            most.append((each / change)[:, suspect].amax(1))
        for batch in (few + torch.cat(most).argsort(descending=True)).split(at_a_time):
            if not bool((suspect & small() & open_()).any()):
                break
            seen = seen + made.moved(batch)
            change = seen[1]
    filled = small() & ~open_()
    every = torch.where(seen[0] > 0, change / torch.where(seen[0] > 0, seen[0], 1.0), 0.0)
    sizes = [p.numel() for p in problem.params.values()]
    large = filled & (size > (UNITS_OF_ROUNDING * torch.finfo(x.dtype).eps) ** 2 * size.amax())
    names = tuple(n for n, part in zip(problem.params, large.split(sizes), strict=True) if bool(part.any()))
    return Rounded(filled, names, float(every[~filled].sum().sqrt()))


def beyond_rounding(a: Tensor, b: Tensor, near: tuple[Tensor, Tensor]) -> bool:
    """Tell whether two differ by more than what a change in the last digits makes of them."""
    a, b, moved_a, moved_b = (t.flatten() for t in (a, b, *near))
    noise = torch.linalg.vector_norm(moved_a - a) + torch.linalg.vector_norm(moved_b - b)
    return bool(torch.linalg.vector_norm(a - b) > noise / FILLED_FROM)
