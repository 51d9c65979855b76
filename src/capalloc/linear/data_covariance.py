"""A covariance from data in one pass over batches, shrunk as scikit-learn's estimators do it.

Index convention: a batch is (examples, *inputs), flattened to (examples, inputs). Moments are kept about the mean of
the first batch, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from capalloc._linalg.data_moments import DataMoments, shrinkage_weight
from capalloc._model.given_examples import iterate_batches
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.linear.arrays import real_tensor
from capalloc.linear.metrics import Covariance

SHRINKAGES = ("ledoit-wolf", "oas", "none")


@runtime_checkable
class CovarianceEstimator(Protocol):
    """A covariance estimator of scikit-learn, such as `GraphicalLasso()`."""

    def fit(self, X: Any) -> Any:
        """Estimate from (examples, inputs); the result has `covariance_`."""


@checked
@undisturbed()
def estimate_covariance(
    data: Tensor | Iterable[Any], shrinkage: str | float | CovarianceEstimator = "ledoit-wolf"
) -> Covariance:
    """Estimate the covariance of data, for `linear_capacity`, in a pass over batches that keeps n x n numbers.

    $(1 - a) S + a (trace S / n) I$ with the empirical S. The numbers are those of scikit-learn's `LedoitWolf`, `OAS`,
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
    weight = shrinkage if isinstance(shrinkage, (int, float)) else shrinkage_weight(shrinkage, S, moments)
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
