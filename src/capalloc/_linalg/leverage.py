"""Exact leverage scores of a tall or wide matrix that comes in blocks of rows.

Index convention: C is (rows, params), scaled so that G = C'C. Scores are squared entries of C G^(+1/2), the polar
factor of C: row r and parameter k share [C G^(+1/2)]_rk^2 of capacity (docs/theory.md, section 2), and with a
ridge [C (G + ridge)^(-1/2)]_rk^2. Both sides agree, as C (C'C + l)^(-1/2) = (CC' + l)^(-1/2) C, so the solver works
on the smaller one. Without a ridge G itself is never formed: its triangular factor keeps singular values of C down to
rounding, where G would keep their squares. With a ridge far above G's rounding (`gram_root.gram_error`) G is
formed, which takes a fraction of the time, and its square root taken.

Numerical rank: singular values of C up to max(rows, params) * eps * (the largest) count as zero. That is how far
rounding in an orthogonal factorisation moves them, so no smaller one can be told from zero. From G it is the square
root of that, and a smaller one brings less than `accuracy`.

Joint entries belong to coordinates. Without a ridge those of theta_k / scale_k are squared entries of the polar factor
of C D, D = diag(scale). With C = U B, U'U = 1 on its range, it is U times the polar factor of B D: the rank and the
scores of rows stay those of C, however small a scale is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._linalg.fold import Fold, Total
from capalloc._linalg.gram_root import Root
from capalloc._linalg.row_block import RowBlock

#: Leverages are in [0, 1] and known to some eps; a parameter that any constraint moves has far more than this.
NO_LEVERAGE = 1e-20


@dataclass(frozen=True)
class Scores:
    """Capacity per (parameter tensor, slot), and the root it was made with."""

    table: Tensor
    root: Root
    idle: int | None = None  # parameters that no constraint moves; None where that is not known

    def small(self) -> Scores:
        """Drop the root's matrices, which nobody needs after the table."""
        none = self.root.matrix.new_empty(0)
        return replace(self, root=replace(self.root, matrix=none, polar=none))


def polar_factor(
    C: Tensor, ridge: float = 0.0, eps: float | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Root]:
    """C (C'C + ridge)^(-1/2), from the smaller side; `eps` and `scale` as in `inverse_root`.

    With C = QR it is Q times the polar factor of R: orthonormal to rounding however ill conditioned C is.
    """
    if C.shape[0] >= C.shape[1]:
        Q, R = torch.linalg.qr(C)
        root = inverse_root(R, ridge, max(C.shape), eps, scale)
        return Q @ root.polar, root
    Q, R = torch.linalg.qr(C.T)
    root = inverse_root(R, ridge, max(C.shape), eps)
    polar = (Q @ root.polar).T
    if scale is not None:
        basis = torch.linalg.eigh(polar @ polar.T).eigenvectors[:, len(C) - root.rank :]  # of the range of C
        polar = basis @ unitary_factor(basis.T @ C * scale)
    return polar, root


def idle_columns(polar: Tensor) -> int:
    """Count the parameters without leverage, from the polar factor (any, params): those that no constraint moves."""
    return int((polar.square().sum(0) < NO_LEVERAGE).sum())


@dataclass(frozen=True)
class AllRows(Fold[tuple[RowBlock, ...]]):
    """All blocks of rows, kept."""

    def begin(self, source: object) -> tuple[RowBlock, ...]:
        """Return no block."""
        return ()

    def advance(self, state: tuple[RowBlock, ...], block: RowBlock) -> tuple[RowBlock, ...]:
        """Keep one more."""
        return (*state, block)

    def merge(self, a: tuple[RowBlock, ...], b: tuple[RowBlock, ...]) -> tuple[RowBlock, ...]:
        """Return both."""
        return a + b


@dataclass(frozen=True)
class ScoreTable(Total):
    """Scores of blocks of rows, from the root of G: capacity by (parameter tensor, slot)."""

    root: Tensor  # (params, params)
    sizes: tuple[int, ...]
    num_slots: int

    def begin(self, source: object) -> tuple[Tensor, ...]:
        """Return a table of zeros."""
        return (self.root.new_zeros(len(self.sizes), self.num_slots, dtype=torch.float64),)

    def advance(self, state: tuple[Tensor, ...], block: RowBlock) -> tuple[Tensor, ...]:
        """Add the scores of a block."""
        accumulate(state[0], block.times(self.root), block.slots, self.sizes)
        return state


def accumulate(table: Tensor, polar: Tensor, slots: Tensor, sizes: Sequence[int]) -> None:
    """Add squared entries of the polar factor to their (parameter tensor, slot)."""
    by_tensor = torch.stack([part.square().sum(1) for part in polar.split(sizes, dim=1)])
    table.index_add_(1, slots, by_tensor.to(table.dtype))


@dataclass(frozen=True)
class Triangle(Fold[tuple[Tensor, ...]]):
    """The factor R of C = QR, R'R = C'C, from blocks of rows that are gathered until they outnumber the columns."""

    def begin(self, source: object) -> tuple[Tensor, ...]:
        """Return no row."""
        return ()

    def advance(self, state: tuple[Tensor, ...], block: RowBlock | Tensor) -> tuple[Tensor, ...]:
        """Gather rows, and factor them once they are many."""
        rows = block if isinstance(block, Tensor) else block.rows
        gathered = (*state, rows)
        return self.finish(gathered) if sum(map(len, gathered)) >= 3 * rows.shape[1] else gathered

    def finish(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the factor alone; none of no rows."""
        return (torch.linalg.qr(torch.cat(state), mode="r").R,) if state else ()

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Factor two factors."""
        return self.finish(a + b)


def unitary_factor(B: Tensor) -> Tensor:
    """(BB')^(-1/2) B, for independent rows."""
    left, _, right = torch.linalg.svd(B, full_matrices=False)
    factor: Tensor = left @ right
    return factor


def inverse_root(
    factor: Tensor, ridge: float, size: int, eps: float | None = None, scale: Tensor | None = None
) -> Root:
    """(F'F + ridge)^(-1/2) on the range of F'F.

    Args:
        factor: F, (any, params).
        ridge: non-negative.
        size: the larger side of the matrix that F came from.
        eps: relative rounding of that matrix's entries; by default what its dtype has.
        scale: without a ridge, of the coordinates that columns of the polar factor are to belong to, (params,) and
            positive: the matrix is turned so that F times it is the polar factor of F D on the range of F.

    """
    left, singular, vectors = torch.linalg.svd(factor, full_matrices=False)
    tolerance = size * (torch.finfo(factor.dtype).eps if eps is None else eps)
    largest = float(singular[0]) if len(singular) else 0.0
    keep = singular > tolerance * largest
    left, kept, vectors = left[:, keep], singular[keep], vectors[keep]
    dropped = singular[~keep]
    lengths = (kept.square() + ridge).sqrt()
    turned = vectors if scale is None else unitary_factor(kept[:, None] * vectors * scale)
    matrix, polar = (vectors.T / lengths) @ turned, (left * (kept / lengths)) @ turned
    capacity = float((kept.square() / (kept.square() + ridge)).sum())
    return Root(matrix, kept, float(dropped.max()) if len(dropped) else 0.0, tolerance, capacity, polar)
