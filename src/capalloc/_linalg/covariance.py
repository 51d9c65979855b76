"""Roots of an input covariance S, checked: the metric <a, b> = a'Sb of docs/theory.md, section 1."""

from __future__ import annotations

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh

#: Rounding of a covariance that was estimated in its own dtype: times its size, and its largest eigenvalue.
ROUNDING = 10.0


def rounding_of(covariance: Tensor) -> float:
    """Relative error to forgive in an estimated covariance, from the dtype it came in."""
    dtype = covariance.dtype if covariance.dtype.is_floating_point else torch.float64
    return ROUNDING * len(covariance) * torch.finfo(dtype).eps


def root_of_variances(variances: Tensor, name: str = "metric") -> Tensor:
    """Standard deviations."""
    if (variances < 0).any():
        raise ValueError(f"{name} has a negative variance, {float(variances.min()):.3g}; variances must be >= 0")
    return variances.sqrt()


def check_symmetric(covariance: Tensor, rounding: float, name: str) -> None:
    """Refuse entries that differ from their mirror by more than rounding."""
    asymmetry = float((covariance - covariance.T).abs().max())
    if asymmetry > rounding * float(covariance.abs().max()):
        raise ValueError(
            f"{name} is not symmetric: entries differ by {asymmetry:.3g} from their mirror; use (S + S.T) / 2"
        )


def root_of_covariance(covariance: Tensor, rounding: float, name: str = "metric") -> Tensor:
    """The symmetric positive semi-definite root; eigenvalues within rounding of zero count as zero.

    Rounding is the larger of n * eps of the largest eigenvalue and twice what the most negative one shows of it. The
    root of less would be far above rounding, and count as a direction of its own.
    """
    check_symmetric(covariance, rounding, name)
    values, vectors = eigh((covariance + covariance.T) / 2)
    if values[0] < -rounding * float(values.abs().max()):
        raise ValueError(
            f"{name} is indefinite: smallest eigenvalue {float(values[0]):.3g}, largest {float(values[-1]):.3g}; "
            "a covariance has none below zero"
        )
    least = max(len(values) * torch.finfo(values.dtype).eps * float(values[-1]), -2 * float(values[0]))
    root: Tensor = (vectors * torch.where(values > least, values, 0.0).sqrt()) @ vectors.T
    return root


def cholesky_of_covariance(covariance: Tensor, rounding: float, name: str = "metric") -> Tensor:
    """The lower triangular root of a symmetric positive definite covariance."""
    check_symmetric(covariance, rounding, name)
    root: Tensor
    root, failed = torch.linalg.cholesky_ex((covariance + covariance.T) / 2)
    if int(failed):
        raise ValueError(
            f"{name} is not positive definite: input {int(failed) - 1} is a linear function of those before "
            'it, so it has no innovation; use root="symmetric", or add a little to the diagonal'
        )
    return root
