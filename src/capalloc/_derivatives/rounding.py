"""Constraints that are nothing but rounding: those that inputs and parameters changed in their last digits change.

The mean of a norm takes a bias away, and what is left of its derivative is the rounding of a subtraction, of any size
where the norm divides by a small deviation. No threshold tells it from a small constraint; a change of all numbers
by some units of rounding does, as it leaves every true constraint nearly as it is.
"""

from __future__ import annotations

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

#: Units of rounding by which numbers change, and the relative change of a column that rounding fills.
UNITS, FILLED_FROM = 64, 0.1


@dataclass(frozen=True)
class Rounded:
    """Columns that a change in the last digits changes by a tenth, and what it does to the others."""

    filled: Tensor  # (params,), columns that rounding fills
    names: tuple[str, ...]  # of the tensors with some that would be told from rounding by no size
    known_to: float  # relative change of the other columns, together


@contextmanager
def nudged(problem: Problem, x: Tensor) -> Iterator[Tensor]:
    """Change parameters in their last digits for a while, and give examples changed so."""
    random, step = torch.Generator().manual_seed(7), UNITS * torch.finfo(x.dtype).eps
    draw = lambda like: torch.randn(like.shape, generator=random, dtype=like.dtype).to(like) * like.abs()  # noqa: E731
    with moved(problem, {name: draw(p.detach()) for name, p in problem.params.items()}, step):
        yield x + step * draw(x)


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
        with nudged(problem, part) as near:
            other = _side_by_side(problem, rows(near, directions, again))
        found = own.square().sum(0), (other - own).square().sum(0)
        size, change = found if not first else (size + found[0], change + found[1])
        every = torch.where(size > 0, change / torch.where(size > 0, size, 1.0), 0.0).sqrt()
        filled = every > FILLED_FROM
        if not bool(filled.any()):
            break
    sizes = [p.numel() for p in problem.params.values()]
    large = filled & (size > (UNITS_OF_ROUNDING * torch.finfo(x.dtype).eps) ** 2 * size.amax())
    names = tuple(n for n, part in zip(problem.params, large.split(sizes), strict=True) if bool(part.any()))
    return Rounded(filled, names, float(every[~filled].square().sum().sqrt()))


def _side_by_side(problem: Problem, parts: Mapping[str, Tensor]) -> Tensor:
    """Join the rows of a few examples, (rows, params)."""
    return torch.cat([parts[name].flatten(0, 2).flatten(1) for name in problem.params], 1)


def beyond_rounding(a: Tensor, b: Tensor, near: tuple[Tensor, Tensor]) -> bool:
    """Tell whether two differ by more than what a change in the last digits makes of them."""
    a, b, moved_a, moved_b = (t.flatten() for t in (a, b, *near))
    noise = torch.linalg.vector_norm(moved_a - a) + torch.linalg.vector_norm(moved_b - b)
    return bool(torch.linalg.vector_norm(a - b) > noise / FILLED_FROM)
