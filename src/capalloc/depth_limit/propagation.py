"""The walk through a list of blocks: a propagator for each, by the way that it allows, and the law after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from capalloc.depth_limit.block import BlockSequence, WalkBlock, check_blocks
from capalloc.depth_limit.moves import Border, Grid, Moves, make_grid
from capalloc.depth_limit.propagators import Propagator, Ways
from capalloc.depth_limit.start import check_start
from capalloc.results.evolution import Evolution, on_grid

WalkMethod = Literal["auto", "fft", "sparse"]
WALK_METHODS = get_args(WalkMethod)


@dataclass(frozen=True)
class WalkDescription:
    """What makes one description of the walk: the moves of a block, and how a propagator comes from them."""

    name: str
    moves_of: Callable[[WalkBlock, Grid], Moves]
    ways: Ways
    settings: tuple[tuple[str, str], ...] = ()


def evolve(
    description: WalkDescription,
    blocks: BlockSequence,
    start: ArrayLike,
    border: Border | Sequence[Border],
    method: WalkMethod,
    spacing: float = 1.0,
) -> Evolution:
    """The walk from `start` through the blocks, from the last to the first."""
    law = check_start(start)
    grid = make_grid(law.shape, border, spacing)
    passed = check_blocks(blocks, law.shape)[::-1]
    if method not in WALK_METHODS:
        raise ValueError(f"method must be one of {WALK_METHODS}, got {method!r}")
    states = np.zeros((len(passed) + 1, grid.cells + 1))
    states[0, :-1] = law.ravel()
    previous = None
    for k, block in enumerate(passed):
        if block is not previous:  # a stack of one block is built once
            propagate, previous = _propagator(description, block, grid, method), block
        states[k + 1] = propagate(states[k])
    # the FFT rounds to either side of 0; clipped at the end, since clipping in each block would add up
    states = states.clip(min=0)
    borders = grid.borders if len(set(grid.borders)) > 1 else grid.borders[:1]
    settings = {"description": description.name, "borders": ", ".join(borders), **dict(description.settings)}
    depth = ("depth", np.arange(len(states)))
    laws = on_grid(states[:, :-1].reshape(-1, *grid.shape), spacing, depth)
    return Evolution(laws, xr.DataArray(states[:, -1], [depth], name="absorbed"), settings)


def _propagator(description: WalkDescription, block: WalkBlock, grid: Grid, method: WalkMethod) -> Propagator:
    """By FFT where borders and coefficients allow it, by a sparse matrix elsewhere."""
    constant = grid.periodic and not block.grid
    if method == "fft" and not constant:
        raise ValueError(
            "method 'fft' needs periodic borders and blocks that are the same everywhere, got borders "
            f"{grid.borders} and a block on grid {block.grid}; use 'auto' or 'sparse'"
        )
    fourier, by_matrix = description.ways
    way = fourier if constant and method != "sparse" else by_matrix
    return way(description.moves_of(block, grid), grid)
