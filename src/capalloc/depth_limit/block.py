"""Residual blocks as the walk meets them: how often it takes the branch, and how far the branch carries it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked_fields
from capalloc.depth_limit.moves import Moves
from capalloc.depth_limit.step_law import StepLaw

Clock = Literal["rate", "log", "steps"]
CLOCKS = get_args(Clock)


@checked_fields
@dataclass(frozen=True, eq=False)
class WalkBlock:
    """One residual block $h + F(h)$: the law of F's step, and rate = branch energy / skip energy.

    Args:
        law: of the step, the same everywhere or one per position.
        rate: $lambda >= 0$; `math.inf` for a plain layer, without skip; an array over the grid for a rate per position.

    Raises:
        ValueError: a rate that is negative or NaN, or of another shape than the law's grid.

    """

    law: StepLaw
    rate: Array

    def __init__(self, law: StepLaw, rate: ArrayLike = math.inf) -> None:
        values = np.array(rate, dtype=float)
        if not (values >= 0).all():
            raise ValueError(f"rate must be at least 0, got {values[~(values >= 0)].flat[0]}")
        if values.ndim not in (0, law.ndim) or (values.ndim and law.grid not in ((), values.shape)):
            raise ValueError(
                f"rate of shape {values.shape} does not fit a law of {law.ndim} axes on grid {law.grid}: give one "
                "number, or an array over the grid"
            )
        values.setflags(write=False)
        object.__setattr__(self, "law", law)
        object.__setattr__(self, "rate", values)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid that rate or law vary over; empty for coefficients that are the same everywhere."""
        return self.rate.shape or self.law.grid

    @property
    def step_probability(self) -> Array:
        """$lambda / (1 + lambda)$, 1 for a plain layer, over the grid or without axes."""
        return mean_steps(self.rate)

    def __repr__(self) -> str:
        rate = f"{float(self.rate):g}" if not self.rate.ndim else f"{self.rate.min():g} .. {self.rate.max():g}"
        return f"WalkBlock({self.law!r}, rate {rate})"


def mean_steps(rate: Array) -> Array:
    """lambda / (1 + lambda), without cancellation for small rates and 1 for infinite ones."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(1 / (1 + 1 / rate))


#: How long the block lasts on the clock of a jump process of rate one.
DURATIONS: dict[Clock, Callable[[Array], Array]] = {
    "rate": lambda rate: rate,
    "log": np.log1p,
    "steps": mean_steps,
}


def durations(block: WalkBlock, clock: Clock) -> Array:
    """Mean number of jumps in a block, by position or without axes.

    Raises:
        ValueError: an unknown clock, or a plain layer on a clock where it lasts for ever.

    """
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {CLOCKS}, got {clock!r}")
    time = DURATIONS[clock](block.rate)
    if not np.isfinite(time).all():
        raise ValueError(
            f"a plain layer, of rate inf, lasts for ever on the clock {clock!r}: use chain, or clock='steps'"
        )
    return time


def law_moves(block: WalkBlock, scale: Array) -> Moves:
    """The displacements of a block's law, its probabilities times a scale by position or without axes."""
    y, law = block.law.displacements, block.law
    ones = (1,) * len(block.grid)
    probabilities = law.moves.reshape(len(y), *(law.grid or ones))
    return Moves(y.reshape(len(y), *ones, law.ndim), probabilities * scale)


#: In the order of the network, with or without names.
BlockSequence = Sequence[WalkBlock] | Mapping[str, WalkBlock]


def check_blocks(blocks: BlockSequence, shape: tuple[int, ...]) -> tuple[WalkBlock, ...]:
    """The blocks, without names, if every one fits a grid of this shape.

    Raises:
        ValueError: a block for another grid.

    """
    listed = tuple(blocks.values() if isinstance(blocks, Mapping) else blocks)
    for k, block in enumerate(listed):
        if block.law.ndim != len(shape) or block.grid not in ((), shape):
            raise ValueError(
                f"block {k} is for {block.law.ndim} axes{f' and grid {block.grid}' if block.grid else ''}, "
                f"the start's grid is {shape}"
            )
    return listed
