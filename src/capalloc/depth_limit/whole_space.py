"""The diffusion without borders, for coefficients that are the same everywhere: a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import multivariate_normal

from capalloc._runtime.arguments import checked
from capalloc.depth_limit.block import BlockSequence, Clock, check_blocks, durations
from capalloc.depth_limit.moves import point
from capalloc.results.evolution import on_grid


@checked
def gaussian(
    blocks: BlockSequence,
    shape: int | Sequence[int],
    position: int | Sequence[int] | None = None,
    *,
    spacing: float = 1.0,
    clock: Clock = "rate",
) -> xr.DataArray:
    """Law at the inputs of the diffusion from a point: normal with mean $sum_l b_l$, covariance $sum_l D_l$.

    It solves $dq/dt = -div(b q) + 1/2 sum_ab d_a d_b (D_ab q)$ for b and D that vary in depth alone (docs/theory.md,
    section 5).

    Args:
        blocks: with the same law and rate everywhere, of finite rates.
        shape: of the grid that it is given on, in cells.
        position: index of the point, the centre n // 2 by default.
        spacing: size of a cell in pixels.
        clock: as for `jump`.

    Returns:
        density at the middle of each cell times the cell's volume, (*space), coordinates in pixels.

    Raises:
        ValueError: a block that varies in space, a plain layer, or no spread along some direction.

    """
    origin = np.argwhere(point(shape, position))[0]
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    constant = check_blocks(blocks, sizes)
    if any(block.grid for block in constant):
        raise ValueError("gaussian needs blocks that are the same everywhere; use diffusion")
    times = [float(durations(block, clock)) for block in constant]
    mean, covariance = origin * spacing, np.zeros((len(sizes), len(sizes)))
    for time, block in zip(times, constant, strict=True):
        mean, covariance = mean + time * block.law.mean, covariance + time * block.law.second_moment
    if np.linalg.matrix_rank(covariance) < len(sizes):
        raise ValueError(
            f"blocks give a law without density: its covariance {covariance.tolist()} is singular; use jump"
        )
    places = np.moveaxis(np.indices(sizes), 0, -1) * spacing
    density = multivariate_normal(mean, covariance).pdf(places) * spacing ** len(sizes)
    return on_grid(density.reshape(sizes), spacing)
