"""Symmetric Toeplitz matrices by FFT: S_ij = r_|i-j|, never formed.

Index convention: r is (inputs,); vectors are rows, (..., inputs), so that the FFT runs over contiguous memory.
All of it is float64, in O(n log n) time and O(n) memory, but for `innovations_product` (O(n^2) time at worst).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.fft import irfft, rfft

#: Relative residual at which conjugate gradients stop, and the largest that a solution may keep.
RESIDUAL, ACCEPTED = 1e-14, 1e-9
#: Iterations of conjugate gradients; preconditioned ones converge in tens.
ITERATIONS = 2000
#: They give up after this many that do not halve the residual.
STALLED = 200
#: The generator of the Schur algorithm counts as exhausted below this, relative to its partner.
EXHAUSTED = 1e-14
#: Vectors go through the FFT together up to about this many numbers.
CHUNK = 2**23
SINGULAR = (
    "the autocovariance is not positive definite to working precision; add a little white noise, for example "
    "1e-4 of the variance at lag 0"
)


@dataclass(frozen=True)
class Toeplitz:
    """S from its first column r."""

    column: Tensor

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.column)

    @cached_property
    def length(self) -> int:
        """Of the circulant matrix that S stands in the corner of."""
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
        """S V, for one vector or several."""
        step = max(1, CHUNK // self.length)
        if V.ndim > 1 and len(V) > step:
            return torch.cat([self.multiply(part) for part in V.split(step)])
        product: Tensor = irfft(rfft(V, self.length) * self.symbol, self.length)[..., : self.size]
        return product

    def shifted(self, shift: float) -> Toeplitz:
        """S + shift I."""
        column = self.column.clone()
        column[0] += shift
        return Toeplitz(column)

    def precondition(self, v: Tensor) -> Tensor:
        """The inverse of the nearest circulant matrix times v."""
        product: Tensor = irfft(rfft(v) / self.circulant, self.size)
        return product

    def solve(self, v: Tensor) -> Tensor:
        """S^-1 v for one vector, by conjugate gradients."""
        if bool((self.circulant <= 0).any()):
            raise ValueError(SINGULAR)
        return conjugate_gradients(self.multiply, self.precondition, v)

    def inverse_product(self, V: Tensor) -> Tensor:
        """S^-1 V for many vectors, (vectors, inputs), after a single solve.

        With x = S^-1 e_1, S^-1 = (L(x) L(x)' - L(y) L(y)') / x_1, where y = (0, x_n, ..., x_2) and L(.) is lower
        triangular Toeplitz (I. Gohberg and A. Semencul, 1972).
        """
        first = self.column.new_zeros(self.size)
        first[0] = 1.0
        x = self.solve(first)
        y = torch.cat([x.new_zeros(1), x[1:].flip(0)])
        X, Y = rfft(x, self.length), rfft(y, self.length)
        result = torch.empty_like(V)
        step = max(1, CHUNK // self.length)
        for start in range(0, len(V), step):
            spectrum = rfft(V[start : start + step], self.length)
            total = X * self._truncated(X.conj() * spectrum) - Y * self._truncated(Y.conj() * spectrum)
            result[start : start + step] = irfft(total, self.length)[..., : self.size] / x[0]
        return result

    def _truncated(self, spectrum: Tensor) -> Tensor:
        truncated: Tensor = rfft(irfft(spectrum, self.length)[..., : self.size], self.length)
        return truncated

    def spectrum_bounds(self) -> tuple[float, float]:
        """An interval that holds the eigenvalues of S, which stands in the corner of a circulant matrix."""
        wrapped = torch.cat([self.column, self.column[1:-1].flip(0)])
        values = rfft(wrapped).real
        low, high = float(values.min()), float(values.max())
        if low <= 1e-12 * high:
            low = smallest_eigenvalue(self) / 4
            high = max(high, float(self.symbol.max()))
        return low, high


def smallest_eigenvalue(S: Toeplitz, iterations: int = 6) -> float:
    """From above, by inverse iteration."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(S.size, generator=generator, dtype=S.column.dtype)
    for _ in range(iterations):
        v = S.solve(v / v.norm())
    return 1.0 / float(v.norm())


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], b: Tensor
) -> Tensor:
    """A^-1 b for a positive definite A, to a relative residual of `RESIDUAL` or as far as rounding allows.

    Raises:
        ValueError: A is not positive definite, or too ill conditioned to reach `ACCEPTED`.

    """
    x, residual = torch.zeros_like(b), b.clone()
    z = precondition(residual)
    direction, rho = z, float(residual @ z)
    scale = float(b.norm())
    best, best_x, since = math.inf, x, 0
    for _ in range(ITERATIONS):
        product = multiply(direction)
        curvature = float(direction @ product)
        if curvature <= 0 or rho <= 0:
            break
        step = rho / curvature
        x = x + step * direction
        residual = residual - step * product
        error = float(residual.norm())
        best, best_x, since = (error, x, 0) if error < 0.5 * best else (best, best_x, since + 1)
        if error <= RESIDUAL * scale or since > STALLED:
            break
        z = precondition(residual)
        rho, previous = float(residual @ z), rho
        direction = z + rho / previous * direction
    if not float((b - multiply(best_x)).norm()) <= ACCEPTED * scale:
        raise ValueError(SINGULAR)
    return best_x


def innovations_product(r: Tensor, J: Tensor) -> Tensor:
    """L'J for S = LL' with L lower triangular, column by column of L (the Schur algorithm).

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
        if float(v.abs().max()) <= EXHAUSTED * float(u.abs().max()):
            C[k + 1 :] = correlate(u, J[k + 1 :])
            break
        reflection = float(v[0] / u[0])
        if not abs(reflection) < 1:
            raise ValueError(SINGULAR)
        gain = math.sqrt((1 - reflection) * (1 + reflection))
        u, v = (u - reflection * v) / gain, (v - reflection * u) / gain
    return C


def correlate(u: Tensor, J: Tensor) -> Tensor:
    """sum_i u_i J_(k + i) for every k: (inputs, columns)."""
    length = int(next_fast_len(2 * len(u) - 1, real=True))
    spectrum = rfft(u, length).conj()
    products: Tensor = irfft(spectrum * rfft(J.T, length), length)[..., : len(u)].T
    return products
