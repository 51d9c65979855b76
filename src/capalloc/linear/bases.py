"""Orthonormal bases of the whitened input space: partitions that no set of inputs makes (docs/theory.md, section 1).

The capacity of a subspace U with orthonormal basis B is kappa(U) = trace(P_C P_U) = |B'A|^2, where A A' = P_C.

Index convention: A is (inputs, columns); a basis turns it into (components, columns).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from capalloc._linalg.symmetric import eigh
from capalloc._runtime.arguments import checked
from capalloc.linear.arrays import RealArray, real_tensor

#: Largest entry of B'B - I that counts as rounding.
ORTHONORMAL = 1e-8


Labels = ArrayLike  # texts or numbers


@dataclass(frozen=True)
class Basis:
    """Orthonormal coordinates of whitened inputs.

    Args:
        axis: what to call the axis of components, such as "frequency".
        labels: one per component.
        size: number of inputs.
        squares: from A, (inputs, columns), to its squared length along each component, (components, columns).
        complete: whether the components span the space; where not, capacity left over goes to a component "rest".

    """

    axis: str
    labels: NDArray[np.generic]
    size: int
    squares: Callable[[Tensor], Tensor]
    complete: bool = True


@checked
def orthonormal_basis(vectors: RealArray, labels: Labels | None = None, axis: str = "component") -> Basis:
    """Take any orthonormal vectors; where they do not span the space, `linear_capacity` adds a component "rest".

    Args:
        vectors: (inputs, components), of the whitened space; its coordinates are those of the inputs for $S = I$.
        labels: names of the components; 0, 1, ... by default.
        axis: what to call their axis.

    Raises:
        ValueError: the vectors are not orthonormal, or there is not one label for each.

    """
    B = real_tensor(vectors, "vectors", ndim=2).double()
    n, count = B.shape
    error = float((B.T @ B - torch.eye(count, dtype=B.dtype)).abs().max()) if count else np.inf
    if error > ORTHONORMAL:
        raise ValueError(
            f"vectors are not orthonormal: V'V differs from the identity by {error:.2g}; pass an orthonormal basis of "
            "their span, such as numpy.linalg.qr(vectors)[0]"
        )
    try:
        names = np.arange(count) if labels is None else np.asarray(labels)
    except ValueError:
        raise ValueError(f"labels must be one text or number for each of {count} vectors, got a ragged list") from None
    if names.shape != (count,):
        raise ValueError(f"labels have shape {names.shape} for {count} vectors")
    if count < n and labels is None:
        names = names.astype(str)
    return Basis(axis, names, n, lambda A: (B.T @ A).square(), complete=count == n)


@checked
def principal_basis(covariance: RealArray, count: int | None = None) -> Basis:
    """Find the principal components of the inputs, by decreasing variance: component 0 has the largest.

    With `root="symmetric"` the whitened coordinates along an eigenvector of S are the component itself, scaled to
    variance 1.

    Args:
        covariance: (inputs, inputs).
        count: how many; the others make one component, "rest". All by default.

    Raises:
        ValueError: no square matrix, or a count that does not lie in 1 .. inputs.

    """
    S = real_tensor(covariance, "covariance", ndim=2).double()
    if S.shape[0] != S.shape[1]:
        raise ValueError(f"covariance has shape {tuple(S.shape)}; it must be square")
    kept = len(S) if count is None else count
    if not 1 <= kept <= len(S):
        raise ValueError(f"count must lie in 1 .. {len(S)}, got {count}")
    vectors = eigh((S + S.T) / 2)[1].flip(1)[:, :kept]
    return orthonormal_basis(vectors)


@checked
def fourier_basis(size: int) -> Basis:
    """Make the discrete Fourier basis of a window, a sine and a cosine to each frequency, by FFT.

    For a stationary signal in a long window frequencies are nearly uncorrelated, so that capacity on them is capacity
    on parts of the signal; it is exactly so for periodic covariances. Frequencies are in cycles per sample, 0 .. 1/2.

    Args:
        size: number of inputs.

    Raises:
        ValueError: no positive number.

    """
    if size < 1:
        raise ValueError(f"size must be the number of inputs, at least 1, got {size}")
    weights = torch.full((size // 2 + 1, 1), 2.0 / size, dtype=torch.float64)
    weights[0] = 1.0 / size
    if size % 2 == 0:
        weights[-1] = 1.0 / size
    return Basis("frequency", np.fft.rfftfreq(size), size, lambda A: weights * torch.fft.rfft(A, dim=0).abs().square())
