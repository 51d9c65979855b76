"""Input metrics, the S of docs/theory.md, section 1: what each needs to multiply by S and by its root.

Index convention: J is (inputs, columns), a filter w is (inputs,). The root R has R R' = S, and whitening is R'J.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from capalloc._linalg.covariance import cholesky_of_covariance, root_of_covariance, root_of_variances, rounding_of
from capalloc._runtime.arguments import checked_fields
from capalloc.linear.arrays import RealArray, real_tensor
from capalloc.linear.rational_root import root_product
from capalloc.linear.toeplitz import Toeplitz, innovations_product

RootKind = Literal["symmetric", "cholesky"]
ROOT_KINDS = ("symmetric", "cholesky")


@runtime_checkable
class Metric(Protocol):
    """A covariance S of the inputs."""

    @property
    def name(self) -> str:
        """The name in a result's `attrs`."""

    @property
    def size(self) -> int | None:
        """Number of inputs, or None for any."""

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Return R'J: (inputs, columns)."""

    def multiply(self, w: Tensor) -> Tensor:
        """Return S w: (inputs,)."""


@dataclass(frozen=True)
class Identity:
    """White inputs of unit variance, in any number."""

    name = "identity"
    size = None

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Return J itself, with either root."""
        return J

    def multiply(self, w: Tensor) -> Tensor:
        """Return the vector itself."""
        return w


@checked_fields
class Variances:
    """Uncorrelated inputs.

    Args:
        variances: (inputs,), non-negative.

    Raises:
        ValueError: negative or not finite.

    """

    name = "variances"

    def __init__(self, variances: RealArray) -> None:
        self.variances = real_tensor(variances, "variances", ndim=1).double()
        self._root = root_of_variances(self.variances, "covariance")

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.variances)

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Multiply rows by standard deviations, with either root."""
        return self._root[:, None] * J

    def multiply(self, w: Tensor) -> Tensor:
        """Multiply elementwise."""
        return self.variances * w


@checked_fields
class Covariance:
    """A full covariance.

    Args:
        matrix: (inputs, inputs), symmetric and positive semi-definite.

    Raises:
        ValueError: not square, not finite, not symmetric, or indefinite.

    """

    name = "covariance"

    def __init__(self, matrix: RealArray) -> None:
        given = real_tensor(matrix, "covariance", ndim=2)
        if given.shape[0] != given.shape[1]:
            raise ValueError(f"covariance has shape {tuple(given.shape)}; it must be square")
        self.matrix = given.double()
        self._rounding = rounding_of(given)

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.matrix)

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Multiply by a root from an eigendecomposition or a Cholesky factorisation, $n^3$."""
        make = root_of_covariance if root == "symmetric" else cholesky_of_covariance
        return make(self.matrix, self._rounding, "covariance").T @ J

    def multiply(self, w: Tensor) -> Tensor:
        """Return S w."""
        return self.matrix @ w


@checked_fields
class LowRankPlusDiagonal:
    """$S = diag(variances) + F F'$, as factor analysis gives, without an n x n matrix.

    Both roots cost $O(n k^2)$ and more per column of J than for a diagonal; the symmetric one is a rational
    approximation with Woodbury's identity in it, exact to about 1e-9 up to condition 1e7.

    Args:
        variances: of what the factors leave, (inputs,), positive.
        factors: (inputs, k).

    Raises:
        ValueError: shapes that do not fit, not finite, or a variance that is not positive.

    """

    name = "low rank plus diagonal"

    def __init__(self, variances: RealArray, factors: RealArray) -> None:
        self.variances = real_tensor(variances, "variances", ndim=1).double()
        self.factors = real_tensor(factors, "factors", ndim=2).double()
        if len(self.factors) != len(self.variances):
            raise ValueError(
                f"factors have shape {tuple(self.factors.shape)} for {len(self.variances)} variances; pass (inputs, k)"
            )
        if not bool((self.variances > 0).all()):
            raise ValueError(
                f"variances beside low-rank factors must be positive, got {float(self.variances.min()):.3g}; "
                "a covariance that is singular goes in as a full matrix"
            )

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.variances)

    def multiply(self, w: Tensor) -> Tensor:
        """Return S w, also for several columns."""
        scaled = self.variances * w if w.ndim == 1 else self.variances[:, None] * w
        product: Tensor = scaled + self.factors @ (self.factors.T @ w)
        return product

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Return R'J in $O(n)$."""
        if root == "cholesky":
            return self._innovations(J)
        low = float(self.variances.min())
        high = float(self.variances.max() + torch.linalg.matrix_norm(self.factors, 2).square())
        return root_product(self.multiply, self._shifted_solve, low, high, J)

    def _shifted_solve(self, shift: float, V: Tensor) -> Tensor:
        """Return (S + shift)^-1 V by Woodbury's identity."""
        scaled = self.factors / (self.variances + shift)[:, None]
        inner = torch.eye(self.factors.shape[1], dtype=V.dtype) + self.factors.T @ scaled
        plain = V / (self.variances + shift)[:, None]
        solution: Tensor = plain - scaled @ torch.linalg.solve(inner, self.factors.T @ plain)
        return solution

    def _innovations(self, J: Tensor) -> Tensor:
        """Return L'J with L_ij = f_i'b_j below the diagonal: filter the factors by input, then sum from the last."""
        n, k = self.factors.shape
        spread = torch.eye(k, dtype=J.dtype)  # covariance of the factors given the inputs so far
        gains, scales = torch.empty(n, k, dtype=J.dtype), torch.empty(n, dtype=J.dtype)
        for i, f in enumerate(self.factors):
            seen = spread @ f
            scales[i] = (self.variances[i] + f @ seen).sqrt()
            gains[i] = seen / scales[i]
            spread = spread - torch.outer(gains[i], gains[i])
        C = scales[:, None] * J
        below = torch.zeros(k, J.shape[1], dtype=J.dtype)  # sum of f_i J_i' over the inputs after j
        for j in range(n - 1, -1, -1):
            C[j] += gains[j] @ below
            below += torch.outer(self.factors[j], J[j])
        return C


@checked_fields
class Stationary:
    """A stationary process seen through a window of n values: $S_ij = r_|i-j|$, by FFT and never n x n.

    The symmetric root is a rational approximation whose shifted Toeplitz systems are solved by the Gohberg-Semencul
    formula, O(n log n) for a given condition number and exact to about 1e-10 up to condition 1e6; the Cholesky root
    comes from the Schur algorithm, $O(n)$ for an autoregression and $O(n^2)$ for long memory.

    Args:
        autocovariance: r at lags 0 .. n - 1.

    Raises:
        ValueError: empty, not finite, or larger at another lag than at 0. That it is not positive definite shows
            when it is used.

    """

    name = "stationary"

    def __init__(self, autocovariance: RealArray) -> None:
        r = real_tensor(autocovariance, "autocovariance", ndim=1).double()
        if not (len(r) and float(r[0]) > 0 and float(r.abs().max()) <= float(r[0]) * (1 + 1e-12)):
            raise ValueError(
                "autocovariance must be positive at lag 0 and nowhere larger, got "
                f"{[round(float(value), 6) for value in r[:4]]}; lag 0 comes first"
            )
        self.autocovariance = r
        self.toeplitz = Toeplitz(r)

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.autocovariance)

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        return self.toeplitz.spectrum_bounds()

    def multiply(self, w: Tensor) -> Tensor:
        """Return S w."""
        return self.toeplitz.multiply(w)

    def solve(self, v: Tensor) -> Tensor:
        """Return $S^-1 v$."""
        return self.toeplitz.solve(v)

    def whiten(self, J: Tensor, root: RootKind) -> Tensor:
        """Return R'J, (inputs, columns)."""
        if root == "cholesky":
            return innovations_product(self.autocovariance, J)
        return root_product(self.toeplitz.multiply, self._shifted_solve, *self._bounds, J.T.contiguous()).T

    def _shifted_solve(self, shift: float, V: Tensor) -> Tensor:
        return self.toeplitz.shifted(shift).inverse_product(V)
