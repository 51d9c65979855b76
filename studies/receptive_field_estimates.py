"""Estimates over draws, each with its standard error.

Index convention: rows are (draws, offsets), not normalised; a law is over offsets and sums to one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from studies.receptive_field_stacks import Array, offsets

Statistic = Callable[[Array], Array]  # of laws (..., offsets)


def pooled(rows: Array) -> Array:
    """The law of the summed rows: draws count by what they carry."""
    total = rows.sum(0)
    return total / total.sum()


def each_alike(rows: Array) -> Array:
    """The rows normalised one by one, so that draws count alike; draws that carry nothing are left out."""
    sums = rows.sum(1, keepdims=True)
    return rows[sums[:, 0] > 0] / sums[sums[:, 0] > 0]


def deviation(laws: Array) -> Array:
    """Standard deviation about the mean, in pixels."""
    return np.sqrt(_moment(laws, 2))


def excess_kurtosis(laws: Array) -> Array:
    """Fourth moment about the mean over the squared variance, less the Gaussian's 3."""
    return _moment(laws, 4) / _moment(laws, 2) ** 2 - 3


def _moment(laws: Array, power: int) -> Array:
    places = offsets(laws)
    mean = (laws @ places)[..., None]
    return (laws * (places - mean) ** power).sum(-1)


def jackknife(statistic: Statistic, rows: Array) -> tuple[float, float]:
    """A statistic of the pooled law and its jackknife standard error over draws; NaN for a single draw."""
    value, number = float(statistic(pooled(rows))), len(rows)
    if number < 2:
        return value, float("nan")
    without = rows.sum(0) - rows
    left = statistic(without / without.sum(1, keepdims=True))
    return value, float(np.sqrt((number - 1) * np.mean((left - left.mean()) ** 2)))


def total_variation(p: Array, q: Array) -> float:
    """sum |p - q| / 2."""
    return float(abs(p - q).sum()) / 2


def noise_floor(rows: Array, rng: np.random.Generator, splits: int = 20) -> float:
    """What the total variation to the true law would be by noise alone: half of that between two halves of the draws.

    A half has twice the variance of the whole, and a difference of halves twice that again: twice the deviation.
    """
    if len(rows) < 2:
        return float("nan")
    found = []
    for _ in range(splits):
        order = rng.permutation(len(rows))
        halves = np.array_split(order, 2)
        found.append(total_variation(*(pooled(rows[half]) for half in halves)) / 2)
    return float(np.mean(found))


def gaussian(law: Array) -> Array:
    """The Gaussian of the law's deviation, on the same pixels."""
    weights = np.exp(-0.5 * (offsets(law) / deviation(law)) ** 2)
    return weights / weights.sum()


def slope(depths: Array, values: Array, errors: Array) -> tuple[float, float]:
    """The slope of log value in log depth and its standard error, by weighted least squares."""
    x, y = np.log(depths), np.log(values)
    weights = (values / errors) ** 2
    x = x - weights @ x / weights.sum()
    spread = weights @ x**2
    return float(weights @ (x * y) / spread), float(1 / np.sqrt(spread))
