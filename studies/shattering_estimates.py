"""Estimates of a gradient correlation from inner products by network, with their standard errors.

Products are (networks, ..., points, points): <g(x_p), g(x_p')> of every network. A sample is a network; pairs of points
of one correlation are averaged within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pairs_of(mixing: Array, correlation: float) -> tuple[Array, Array]:
    """The points p < p' whose inputs have this correlation; columns of mixing are the points."""
    gram = mixing.T @ mixing
    near = np.isclose(gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal())), correlation, atol=1e-6)
    return np.nonzero(np.triu(near, 1))


def moments(products: Array, pairs: tuple[Array, Array]) -> tuple[Array, Array]:
    """Mean over pairs of <g, g'> and of (|g|^2 + |g'|^2) / 2, (networks, ...)."""
    first, second = pairs
    square = np.diagonal(products, axis1=-2, axis2=-1)
    return products[..., first, second].mean(-1), (square[..., first] + square[..., second]).mean(-1) / 2


def ratio_of_means(cross: Array, square: Array) -> tuple[Array, Array]:
    """E<g, g'> / E|g|^2 and its standard error by the delta method; |g|^2 and |g'|^2 have one law."""
    value = cross.mean(0) / square.mean(0)
    residual = (cross - value * square) / square.mean(0)
    return value, residual.std(0, ddof=1) / len(cross) ** 0.5


def mean_cosine(products: Array, pairs: tuple[Array, Array]) -> tuple[Array, Array]:
    """E[<g, g'> / |g||g'|] and its standard error."""
    first, second = pairs
    norm = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    cosines = (products[..., first, second] / (norm[..., first] * norm[..., second])).mean(-1)
    return cosines.mean(0), cosines.std(0, ddof=1) / len(cosines) ** 0.5


@dataclass(frozen=True)
class Fit:
    """A polynomial in 1 / width by weighted least squares."""

    coefficients: Array  # of 1, 1 / n, 1 / n^2
    error: float  # standard error of the first, the value at infinite width
    chi_square: float
    freedom: int  # degrees of freedom that are left

    @property
    def intercept(self) -> float:
        """The value at infinite width."""
        return float(self.coefficients[0])

    def __call__(self, inverse: Array) -> Array:
        """The polynomial at 1 / width."""
        return np.polynomial.polynomial.polyval(inverse, self.coefficients)


def extrapolate(widths: Sequence[int], values: Array, errors: Array, degree: int = 2) -> Fit:
    """Fit the values at several widths; of a lower degree where that leaves no degree of freedom."""
    degree = max(0, min(degree, len(widths) - 2))
    design = np.vander(1 / np.asarray(widths, dtype=np.float64), degree + 1, increasing=True) / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    found = covariance @ design.T @ (values / errors)
    chi_square = float(((values / errors - design @ found) ** 2).sum())
    return Fit(found, float(covariance[0, 0] ** 0.5), chi_square, len(widths) - degree - 1)
