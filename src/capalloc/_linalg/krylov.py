"""The inverse root of a symmetric positive matrix A on a Krylov space that several vectors share (block Lanczos).

What one vector finds of the largest eigenvalues serves all. Index convention: k starts, n vectors of the basis V, p the
size of A; vectors are rows.
Reference: A. Frommer, K. Lund, D. Szyld, Block Krylov subspace methods for functions of matrices, Electronic
Transactions on Numerical Analysis 47 (2017) 100-126; the nodes are those of C. Paige, B. Parlett, H. van der Vorst,
Approximate solutions and eigenvalue bounds from Krylov subspaces, Numer. Linear Algebra Appl. 2 (1995) 115-133.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh


@dataclass(frozen=True)
class KrylovSpace:
    """An orthonormal basis in blocks, A projected on it, and the vectors whose products come next."""

    next: Tensor  # (k or fewer, p); none where the space is exhausted
    rounding: float  # of products, relative to the largest: what is smaller is nothing
    blocks: tuple[Tensor, ...]
    projected: Tensor  # V A V', (n, n)
    beyond: Tensor  # what A makes of the last block outside the space, in some orthonormal basis, a row for each

    @classmethod
    def of(cls, starts: Tensor, rounding: float) -> KrylovSpace:
        """Return the space before any product; it spans the starts, (k, p), after the first."""
        nothing = starts.new_zeros(0, 0)
        return cls(orthonormal(starts, rounding * float(starts.norm()))[0], rounding, (), nothing, nothing)

    def step(self, products: Tensor) -> KrylovSpace:
        """Take in A `next`."""
        blocks, known = (*self.blocks, self.next), len(self.projected)
        rest, inside = without(products, blocks)
        rest, more = without(rest, blocks)  # once more: the first leaves its rounding
        inside = inside + more
        last = inside[:, known:]
        projected = torch.cat(
            [
                torch.cat([self.projected, inside[:, :known].T], 1),
                torch.cat([inside[:, :known], (last + last.T) / 2], 1),
            ]
        )
        made, beyond = orthonormal(rest, self.rounding * float(products.norm()))
        made, _ = orthonormal(without(made, blocks)[0], 0.5)  # a short rest was not quite outside
        return KrylovSpace(made, self.rounding, blocks, projected, beyond)

    def inverse_sqrt(self, v: Tensor) -> Tensor:
        """Return what the space knows of A^(-1/2) v, for v of the space, (k, p); zero on the null space of A.

        From one start it is the polynomial of A of the least degree with the values of lambda^(-1/2) at the harmonic
        Ritz values: the nodes of Gauss for lambda times the density, which does not see the null space. What it gives
        v' A^(-1) A v is never more than |v|^2.
        """
        values, vectors = eigh(self.projected)
        kept = values > self.rounding * values[-1].clamp_min(0)
        root, vectors = values[kept].sqrt(), vectors[:, kept]
        last = vectors[len(vectors) - len(self.beyond) :]
        # V A^2 V' is the square of the projected matrix and what is beyond; squares would lose half of the digits.
        turned, nodes, _ = torch.linalg.svd(
            torch.cat([root.diag(), last.T / root[:, None] @ self.beyond], 1), full_matrices=False
        )
        found = (inside(v, self.blocks) @ vectors * root) @ turned / nodes @ turned.T / root
        return expand(found @ vectors.T, self.blocks)

    def sqrt(self, v: Tensor) -> Tensor:
        """Return what the space knows of A^(1/2) v, for v of the space, (k, p): of the square v'A v."""
        values, vectors = eigh(self.projected)
        found = inside(v, self.blocks) @ vectors * values.clamp_min(0).sqrt()
        return expand(found @ vectors.T, self.blocks)


def without(rows: Tensor, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rows without their parts in the space, and these parts, (rows, n)."""
    parts = inside(rows, blocks)
    return rows - expand(parts, blocks), parts


def inside(rows: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Return the coordinates of rows in an orthonormal basis, (rows, n)."""
    return torch.cat([rows @ block.T for block in blocks], 1)


def expand(coordinates: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Return the vectors with these coordinates, (rows, p)."""
    parts = coordinates.split([len(block) for block in blocks], 1)
    return sum((part @ block for part, block in zip(parts, blocks, strict=True)), torch.zeros(()).to(coordinates))


def orthonormal(rows: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Return a basis of what the rows span, directions of singular values above `least`, and the rows in another."""
    Q, R = torch.linalg.qr(rows.T)
    U, values, _ = torch.linalg.svd(R, full_matrices=False)
    return (Q @ U[:, values > least]).T, R.T
