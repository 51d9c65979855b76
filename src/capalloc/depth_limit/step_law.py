"""Laws of a step of the walk: probabilities of displacements, one law for all positions or one for each.

Index convention: probabilities are (*grid, *support), with `grid` empty for one law everywhere; support index k is
the displacement k - origin, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import convolve
from torch import Tensor

from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked_fields


@checked_fields
@dataclass(frozen=True, eq=False)
class StepLaw:
    """Probabilities of the displacements of one step, from a position to the one that it reads.

    A walk at output position x that takes the displacement y goes on at input position x + y.

    Args:
        probabilities: weights >= 0, (*support), or (*grid, *support) for a law per position; each law is divided by
            its sum.
        origin: index of the displacement zero in the support, which has one axis for each of its entries; the
            support's middle, (n - 1) // 2, by default, every axis then being one of the support.

    Raises:
        ValueError: a weight that is negative or not finite, a law without weight, an origin outside the support, a
            number of axes that does not fit, or more than three.

    """

    probabilities: Array
    origin: tuple[int, ...]

    def __init__(self, probabilities: ArrayLike, origin: int | Sequence[int] | None = None) -> None:
        weights = np.array(probabilities, dtype=float)
        where = _origin(weights.shape, origin)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("probabilities of a step must be finite and at least 0; square signed weights first")
        axes = tuple(range(weights.ndim - len(where), weights.ndim))
        sums = weights.sum(axes, keepdims=True)
        if not (sums > 0).all():
            raise ValueError(f"{int((sums <= 0).sum())} law(s) of a step have no weight; give some displacement one")
        weights /= sums
        weights.setflags(write=False)
        object.__setattr__(self, "probabilities", weights)
        object.__setattr__(self, "origin", where)

    @classmethod
    def uniform(cls, kernel_size: int | Sequence[int], ndim: int | None = None, dilation: int = 1) -> StepLaw:
        """Every entry of a kernel alike: the law of fresh weights of one variance.

        Args:
            kernel_size: by axis, or one for all.
            ndim: number of axes, 1 by default; implied where sizes are given by axis.
            dilation: pixels between neighbouring entries.

        Raises:
            ValueError: a size or dilation below 1, or sizes for another number of axes than `ndim`.

        """
        sizes = (kernel_size,) * (ndim or 1) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(sizes) != (ndim or len(sizes)) or min(sizes, default=0) < 1:
            raise ValueError(f"kernel_size must be at least 1 on each of {ndim or len(sizes)} axes, got {kernel_size}")
        return cls(cls(np.ones(sizes)).dilated(dilation).probabilities)

    @classmethod
    def of_kernel(cls, weight: Tensor | ArrayLike, dilation: int = 1) -> StepLaw:
        """The law $w^2 / |w|^2$ of a convolution, summed over its channels (docs/theory.md, section 4).

        Output x of a convolution (torch: a cross-correlation) reads input x + y through the kernel entry at
        displacement y, so the kernel is not flipped. Displacements are those of `padding="same"`. Channels all count
        as holding the same energy.

        Args:
            weight: (outputs, inputs per group, *kernel).
            dilation: pixels between neighbouring entries.

        Raises:
            ValueError: no axis of the kernel.

        """
        array = weight.detach().cpu().double().numpy() if isinstance(weight, Tensor) else np.asarray(weight, float)
        if array.ndim < 3:
            raise ValueError(f"weight must be (outputs, inputs, *kernel), got shape {array.shape}")
        return cls(cls((array**2).sum((0, 1))).dilated(dilation).probabilities)

    @property
    def ndim(self) -> int:
        """Number of axes of space."""
        return len(self.origin)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid of positions that have a law of their own; empty for one law everywhere."""
        return self.probabilities.shape[: -self.ndim]

    @property
    def displacements(self) -> NDArray[np.int64]:
        """(moves, axes), the support's displacements in C order."""
        support = self.probabilities.shape[-self.ndim :]
        places: NDArray[np.int64] = np.moveaxis(np.indices(support), 0, -1).reshape(-1, self.ndim)
        places -= np.array(self.origin)
        return places

    @property
    def moves(self) -> Array:
        """(moves, *grid): probabilities in the order of `displacements`."""
        return np.moveaxis(self.probabilities.reshape(*self.grid, -1), -1, 0)

    @property
    def mean(self) -> Array:
        """$E[y]$, (*grid, axes), in pixels."""
        mean: Array = np.einsum("m...,ma->...a", self.moves, self.displacements)
        return mean

    @property
    def second_moment(self) -> Array:
        """E[y y'], (*grid, axes, axes), in pixels squared."""
        y = self.displacements
        moment: Array = np.einsum("m...,ma,mb->...ab", self.moves, y, y)
        return moment

    @property
    def covariance(self) -> Array:
        """$E[y y'] - E[y] E[y]'$, (*grid, axes, axes), in pixels squared."""
        return self.second_moment - self.mean[..., :, None] * self.mean[..., None, :]

    def dilated(self, dilation: int | Sequence[int]) -> StepLaw:
        """The law of `dilation` times the step, one factor for all axes or one for each.

        Displacements are multiplied about the origin. An even kernel has its middle elsewhere once it is dilated:
        give `dilation` to `uniform` and `of_kernel`, which choose their origin after that.

        Raises:
            ValueError: a dilation below 1, or not one for each axis.

        """
        factors = (dilation,) * self.ndim if isinstance(dilation, int) else tuple(dilation)
        if len(factors) != self.ndim or min(factors) < 1:
            raise ValueError(f"dilation must be at least 1 on each of {self.ndim} axes, got {dilation}")
        support = self.probabilities.shape[-self.ndim :]
        spread = np.zeros((*self.grid, *(f * (n - 1) + 1 for f, n in zip(factors, support, strict=True))))
        every = (slice(None),) * len(self.grid) + tuple(slice(None, None, f) for f in factors)
        spread[every] = self.probabilities
        return StepLaw(spread, tuple(f * k for f, k in zip(factors, self.origin, strict=True)))

    def convolve(self, other: StepLaw) -> StepLaw:
        """The law of the sum of two independent steps.

        Raises:
            ValueError: a law per position, or another number of axes.

        """
        if self.grid or other.grid or self.ndim != other.ndim:
            raise ValueError(
                "laws that are convolved must be the same everywhere and on as many axes, got grids "
                f"{self.grid} and {other.grid}, axes {self.ndim} and {other.ndim}; walk through blocks instead"
            )
        # the direct sum: an FFT leaves negative probabilities of rounding size
        both = convolve(self.probabilities, other.probabilities, method="direct")
        return StepLaw(both, tuple(a + b for a, b in zip(self.origin, other.origin, strict=True)))

    def __repr__(self) -> str:
        support = " x ".join(map(str, self.probabilities.shape[-self.ndim :]))
        if self.grid:
            return f"StepLaw({support} displacements, one law for each of {' x '.join(map(str, self.grid))} positions)"
        deviation = np.sqrt(np.diagonal(self.covariance))
        return f"StepLaw({support} displacements, mean {self.mean.round(3)}, standard deviation {deviation.round(3)})"


def _origin(shape: tuple[int, ...], origin: int | Sequence[int] | None) -> tuple[int, ...]:
    """The origin in full, after the shape has been checked against it."""
    if origin is None:
        where = tuple((n - 1) // 2 for n in shape)
    else:
        where = (origin,) if isinstance(origin, int) else tuple(int(k) for k in origin)
    if not 1 <= len(where) <= 3 or len(shape) not in (len(where), 2 * len(where)) or not math.prod(shape):
        raise ValueError(
            f"probabilities of shape {shape} do not fit an origin of {len(where)} axes: give (*support), or "
            "(*grid, *support) and an origin, with as many axes of support as of space, 1 to 3"
        )
    support = shape[-len(where) :]
    if any(not 0 <= k < n for k, n in zip(where, support, strict=True)):
        raise ValueError(f"origin {where} lies outside the support, of shape {support}")
    return where
