"""Symmetric Toeplitz matrices by FFT: S_ij = r_|i-j|, never formed.

Index convention: r is (inputs,); vectors are rows, (..., inputs), so that the FFT runs over contiguous memory.
All of it is float64, in O(n log n) time and O(n) memory, but for `innovations_product` (O(n^2) time at worst).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.fft import irfft, rfft

#: Relative residual at which conjugate gradients stop, and the largest that a solution may keep.
TARGET_RESIDUAL, ACCEPTED_RESIDUAL = 1e-14, 1e-9
#: Curvature below zero, relative to the norms of both factors, that counts as rounding.
CURVATURE = 1e-12
#: Iterations of conjugate gradients; preconditioned ones converge in tens.
CG_ITERATIONS = 2000
#: The generator of the Schur algorithm counts as exhausted below this, relative to its partner.
SCHUR_EXHAUSTED = 1e-14
#: Vectors go through the FFT together up to about this many numbers.
FFT_NUMBERS = 2**23
NOT_POSITIVE_DEFINITE = (
    "the autocovariance is not positive definite to working precision; add a little white noise, for example "
    "1e-4 of the variance at lag 0"
)


@dataclass(frozen=True)
class Toeplitz:
    """The matrix S from its first column r."""

    column: Tensor

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.column)

    @cached_property
    def length(self) -> int:
        """Size of the circulant matrix that S stands in the corner of."""
        return int(next_fast_len(2 * self.size - 1, real=True))

    @cached_property
    def symbol(self) -> Tensor:
        """Eigenvalues of that circulant matrix."""
        padded = self.column.new_zeros(self.length)
        padded[: self.size] = self.column
        padded[self.length - self.size + 1 :] = self.column[1:].flip(0)
        symbol: Tensor = rfft(padded).real
        return symbol

    @cached_property
    def circulant(self) -> Tensor:
        """Eigenvalues of the circulant matrix nearest to S (T. Chan), positive where S is positive definite."""
        n, r = self.size, self.column
        j = torch.arange(n, dtype=r.dtype)
        eigenvalues: Tensor = rfft(((n - j) * r + j * r.roll(-1).flip(0)) / n).real
        return eigenvalues

    def multiply(self, V: Tensor) -> Tensor:
        """Return S V, for one vector or several."""
        step = max(1, FFT_NUMBERS // self.length)
        if V.ndim > 1 and len(V) > step:
            return torch.cat([self.multiply(part) for part in V.split(step)])
        product: Tensor = irfft(rfft(V, self.length) * self.symbol, self.length)[..., : self.size]
        return product

    def shifted(self, shift: float) -> Toeplitz:
        """Return S + shift I."""
        column = self.column.clone()
        column[0] += shift
        return Toeplitz(column)

    def precondition(self, v: Tensor) -> Tensor:
        """Multiply v by the inverse of the nearest circulant matrix."""
        product: Tensor = irfft(rfft(v) / self.circulant, self.size)
        return product

    def solve(self, v: Tensor) -> Tensor:
        """Return S^-1 v for one vector, by conjugate gradients.

        Raises:
            ValueError: S is not positive definite, or too ill conditioned.

        """
        if bool((self.circulant <= 0).any()):
            raise ValueError(NOT_POSITIVE_DEFINITE)
        S, inverse = (_operator(product, self.size) for product in (self._curved, self.precondition))
        found, _ = cg(S, v.numpy(), rtol=TARGET_RESIDUAL, maxiter=CG_ITERATIONS, M=inverse)
        x = torch.from_numpy(found)
        if not float((v - self.multiply(x)).norm()) <= ACCEPTED_RESIDUAL * float(v.norm()):
            raise ValueError(NOT_POSITIVE_DEFINITE)
        return x

    def _curved(self, direction: Tensor) -> Tensor:
        """Return S times a direction of conjugate gradients, along which a positive definite S curves upwards."""
        product = self.multiply(direction)
        if float(direction @ product) < -CURVATURE * float(direction.norm() * product.norm()):
            raise ValueError(NOT_POSITIVE_DEFINITE)
        return product

    def inverse_product(self, V: Tensor) -> Tensor:
        """Return S^-1 V for many vectors, (vectors, inputs), after a single solve.

        With x = S^-1 e_1, S^-1 = (L(x) L(x)' - L(y) L(y)') / x_1, where y = (0, x_n, ..., x_2) and L(.) is lower
        triangular Toeplitz (I. Gohberg and A. Semencul, 1972).
        """
        first = self.column.new_zeros(self.size)
        first[0] = 1.0
        x = self.solve(first)
        y = torch.cat([x.new_zeros(1), x[1:].flip(0)])
        X, Y = rfft(x, self.length), rfft(y, self.length)
        result = torch.empty_like(V)
        step = max(1, FFT_NUMBERS // self.length)
        for start in range(0, len(V), step):
            spectrum = rfft(V[start : start + step], self.length)
            total = X * self._truncated(X.conj() * spectrum) - Y * self._truncated(Y.conj() * spectrum)
            result[start : start + step] = irfft(total, self.length)[..., : self.size] / x[0]
        return result

    def _truncated(self, spectrum: Tensor) -> Tensor:
        truncated: Tensor = rfft(irfft(spectrum, self.length)[..., : self.size], self.length)
        return truncated

    def spectrum_bounds(self) -> tuple[float, float]:
        """Bound the eigenvalues of S, which stands in the corner of a circulant matrix."""
        wrapped = torch.cat([self.column, self.column[1:-1].flip(0)])
        values = rfft(wrapped).real
        low, high = float(values.min()), float(values.max())
        if low <= 1e-12 * high:
            low = smallest_eigenvalue(self) / 4
            high = max(high, float(self.symbol.max()))
        return low, high


def _operator(product: Callable[[Tensor], Tensor], size: int) -> LinearOperator:
    """Wrap a product with vectors, tensor to tensor, as scipy takes it."""
    return LinearOperator((size, size), matvec=lambda v: product(torch.from_numpy(v)).numpy(), dtype=np.float64)


def smallest_eigenvalue(S: Toeplitz, iterations: int = 6) -> float:
    """Bound it from above by inverse iteration."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(S.size, generator=generator, dtype=S.column.dtype)
    for _ in range(iterations):
        v = S.solve(v / v.norm())
    return 1.0 / float(v.norm())


def innovations_product(r: Tensor, J: Tensor) -> Tensor:
    """Return L'J for S = LL' with L lower triangular, column by column of L (the Schur algorithm).

    O(n^2) time and O(n) memory beside J; as soon as a further value adds nothing to the prediction of the next, after p
    columns of an autoregression AR(p), the columns left are shifts of one another and one FFT does the rest.

    Args:
        r: autocovariance, (inputs,).
        J: (inputs, columns).

    Raises:
        ValueError: S is not positive definite.

    """
    n = len(r)
    C = torch.empty_like(J)
    u = r / r[0].sqrt()
    v = torch.cat([u.new_zeros(1), u[1:]])
    for k in range(n):
        C[k] = u @ J[k:]
        u, v = u[:-1], v[1:]
        if k + 1 == n:
            break
        if float(v.abs().max()) <= SCHUR_EXHAUSTED * float(u.abs().max()):
            C[k + 1 :] = correlate(u, J[k + 1 :])
            break
        reflection = float(v[0] / u[0])
        if not abs(reflection) < 1:
            raise ValueError(NOT_POSITIVE_DEFINITE)
        gain = math.sqrt((1 - reflection) * (1 + reflection))
        u, v = (u - reflection * v) / gain, (v - reflection * u) / gain
    return C


def correlate(u: Tensor, J: Tensor) -> Tensor:
    """Return sum_i u_i J_(k + i) for every k: (inputs, columns)."""
    length = int(next_fast_len(2 * len(u) - 1, real=True))
    spectrum = rfft(u, length).conj()
    products: Tensor = irfft(spectrum * rfft(J.T, length), length)[..., : len(u)].T
    return products
