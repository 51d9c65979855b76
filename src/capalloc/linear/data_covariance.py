"""A covariance from data in one pass over batches, shrunk as scikit-learn's estimators do it.

Index convention: a batch is (examples, *inputs), flattened to (examples, inputs). Moments are kept about the mean of
the first batch, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from capalloc._model.problem import iterate_batches
from capalloc.linear.arrays import real_tensor
from capalloc.linear.metrics import Covariance

SHRINKAGES = ("ledoit-wolf", "oas", "none")


@runtime_checkable
class CovarianceEstimator(Protocol):
    """A covariance estimator of scikit-learn, such as `GraphicalLasso()`."""

    def fit(self, X: Any) -> Any:
        """Estimate from (examples, inputs); the result has `covariance_`."""


@dataclass
class DataMoments:
    """Sums over examples of y = x - origin, of y y', and of |y|^2 y and |y|^4."""

    origin: Tensor
    count: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    third: Tensor | float = 0.0
    fourth: float = 0.0

    def add(self, batch: Tensor) -> None:
        """Take a batch (examples, inputs) in."""
        y = batch - self.origin
        squares = y.square().sum(1)
        self.count += len(y)
        self.first = self.first + y.sum(0)
        self.second = self.second + y.T @ y
        self.third = self.third + squares @ y
        self.fourth += float(squares.square().sum())

    def covariance(self) -> Tensor:
        """Return the covariance about the mean, over the number of examples."""
        mean = torch.as_tensor(self.first) / self.count
        return torch.as_tensor(self.second) / self.count - torch.outer(mean, mean)

    def mean_fourth_power(self) -> float:
        """Return the mean of |x - mean|^4: |y - m|^2 = |y|^2 - 2 y'm + |m|^2, squared and summed."""
        m = torch.as_tensor(self.first) / self.count
        second = torch.as_tensor(self.second) / self.count
        third = torch.as_tensor(self.third) / self.count
        square = float(m @ m)
        return (
            self.fourth / self.count
            - 4 * float(third @ m)
            + 4 * float(m @ second @ m)
            + 2 * square * float(second.trace())
            - 3 * square**2
        )


def estimate_covariance(
    data: Tensor | Iterable[Any], shrinkage: str | float | CovarianceEstimator = "ledoit-wolf"
) -> Covariance:
    """Estimate the covariance of data, for `linear_capacity`, in a pass over batches that keeps n x n numbers.

    (1 - a) S + a (trace S / n) I with the empirical S. The numbers are those of scikit-learn's `LedoitWolf`, `OAS`,
    `ShrunkCovariance` and `EmpiricalCovariance` fitted to all data at once.

    Args:
        data: (examples, *inputs), or an iterable of such batches; labels in (x, y) batches are ignored.
        shrinkage: "ledoit-wolf" (O. Ledoit and M. Wolf, 2004), "oas" (Y. Chen and others, 2010), "none", a number a in
            [0, 1], or a covariance estimator of scikit-learn, which is given all examples at once.

    Raises:
        TypeError: data that are no numbers, or shrinkage of no known kind.
        ValueError: fewer than two examples, batches that differ in shape, NaN or inf, or an unknown method.

    """
    _check_shrinkage(shrinkage)
    if isinstance(shrinkage, CovarianceEstimator):
        fitted = shrinkage.fit(torch.cat(list(_batches(data))).numpy())
        return Covariance(fitted.covariance_)
    moments: DataMoments | None = None
    for batch in _batches(data):
        moments = moments or DataMoments(batch.mean(0))
        moments.add(batch)
    if moments is None or moments.count < 2:
        raise ValueError(f"a covariance needs at least two examples, got {moments.count if moments else 0}")
    S = moments.covariance()
    weight = shrinkage if isinstance(shrinkage, (int, float)) else _weight(shrinkage, S, moments)
    scale = S.diagonal().mean()
    return Covariance((1 - weight) * S + weight * scale * torch.eye(len(S), dtype=S.dtype))


def _check_shrinkage(shrinkage: object) -> None:
    if isinstance(shrinkage, str):
        if shrinkage not in SHRINKAGES:
            raise ValueError(
                f"shrinkage must be one of {', '.join(SHRINKAGES)}, a number or an estimator, got {shrinkage!r}"
            )
    elif isinstance(shrinkage, (int, float)) and not isinstance(shrinkage, bool):
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    elif not isinstance(shrinkage, CovarianceEstimator):
        raise TypeError(
            f"shrinkage must be a name, a number or an estimator with fit(), got {type(shrinkage).__name__}"
        )


def _batches(data: Tensor | Iterable[Any]) -> Iterable[Tensor]:
    shape = None
    for batch in iterate_batches(data):
        x = real_tensor(batch, "data").double()
        if x.ndim < 2:
            raise ValueError(f"data have shape {tuple(x.shape)}; they need an examples axis and one of inputs")
        shape = shape or x.shape[1:]
        if x.shape[1:] != shape:
            raise ValueError(f"batches differ in shape: {tuple(x.shape[1:])} after {tuple(shape)}")
        if len(x):
            yield x.flatten(1)


def _weight(method: str, S: Tensor, moments: DataMoments) -> float:
    """Weigh the identity by the share that minimises the expected squared error, as each paper estimates it."""
    n, count = len(S), moments.count
    if method == "none":
        return 0.0
    scale = float(S.diagonal().mean())
    if method == "ledoit-wolf":
        size = float(S.square().sum())
        noise = (moments.mean_fourth_power() - size) / (n * count)
        distance = size / n - scale**2
        return 0.0 if noise <= 0 or distance <= 0 else min(noise, distance) / distance
    size = float(S.square().mean())
    numerator, denominator = size + scale**2, (count + 1) * (size - scale**2 / n)
    return 1.0 if denominator == 0 else min(numerator / denominator, 1.0)
