"""Where the walk starts: a law over the positions of the output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from capalloc._linalg.aliases import Array


def check_start(start: ArrayLike) -> Array:
    """A copy of the law that the walk starts from, in float64, if it is one.

    Raises:
        ValueError: entries that are negative or not finite, that do not sum to 1, or more than three axes.

    """
    law: Array = np.array(start, dtype=float)
    if not 1 <= law.ndim <= 3 or not law.size:
        raise ValueError(f"start must have one to three axes and some position, got shape {law.shape}")
    if not (np.isfinite(law).all() and (law >= 0).all()):
        raise ValueError("start must be a law: finite entries of at least 0")
    # sums of many float32 entries miss 1 by about this
    if not abs(law.sum() - 1) < 1e-6:
        raise ValueError(f"start must sum to 1, got {law.sum():.8g}; divide it by its sum")
    law /= law.sum()
    return law


def point(shape: int | Sequence[int], position: int | Sequence[int] | None = None) -> Array:
    """The law of a walk that starts at one position, the centre n // 2 by default.

    Args:
        shape: of the grid, one to three axes.
        position: index on every axis.

    Raises:
        ValueError: a position outside the grid or on another number of axes.

    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    at = tuple(n // 2 for n in sizes) if position is None else np.atleast_1d(position).tolist()
    if len(at) != len(sizes) or any(not 0 <= k < n for k, n in zip(at, sizes, strict=False)):
        raise ValueError(f"position {tuple(at)} lies outside a grid of shape {sizes}")
    law = np.zeros(sizes)
    law[tuple(at)] = 1.0
    return law
