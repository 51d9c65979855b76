"""Exact leverage scores of a tall or wide matrix that comes in blocks of rows.

Index convention: C is (rows, params), scaled so that G = C'C. Scores are squared entries of C G^(+1/2), the polar
factor of C: row r and parameter k share [C G^(+1/2)]_rk^2 of capacity (docs/theory.md, section 2), and with a
ridge [C (G + ridge)^(-1/2)]_rk^2. Both sides agree, as C (C'C + l)^(-1/2) = (CC' + l)^(-1/2) C, so the solver works
on the smaller one. G itself is never formed: its triangular factor keeps singular values of C down to rounding,
where G would keep their squares.

Numerical rank: singular values of C up to max(rows, params) * eps * (the largest) count as zero. That is how far
rounding in an orthogonal factorisation moves them, so no smaller one can be told from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: A re-iterable pass over blocks: rows (r, params) and the slot of each row (r,).
Block = tuple[Tensor, Tensor]
Blocks = Callable[[], Iterable[Block]]


@dataclass(frozen=True)
class Root:
    """(F'F + ridge)^(-1/2) on the range of F'F, and the singular values of F that it was made from."""

    matrix: Tensor
    polar: Tensor  # F times that, (rows of F, params)
    singular: Tensor  # those that count, in decreasing order
    dropped: float  # the largest that counts as zero
    tolerance: float  # relative to the largest
    capacity: float  # sum of s^2 / (s^2 + ridge)

    @property
    def rank(self) -> int:
        """Number of singular values that count."""
        return len(self.singular)


@dataclass(frozen=True)
class Scores:
    """Capacity per (parameter tensor, slot), and the root it was made with."""

    table: Tensor
    root: Root


def polar_factor(C: Tensor, ridge: float = 0.0, eps: float | None = None) -> tuple[Tensor, Root]:
    """C (C'C + ridge)^(-1/2), from the smaller side; `eps` as in `inverse_root`.

    With C = QR it is Q times the polar factor of R: orthonormal to rounding however ill conditioned C is.
    """
    if C.shape[0] >= C.shape[1]:
        Q, R = torch.linalg.qr(C)
        root = inverse_root(R, ridge, max(C.shape), eps)
        return Q @ root.polar, root
    Q, R = torch.linalg.qr(C.T)
    root = inverse_root(R, ridge, max(C.shape), eps)
    return (Q @ root.polar).T, root


def score_in_memory(blocks: Blocks, sizes: list[int], num_slots: int, ridge: float) -> Scores:
    """Scores from all rows at once."""
    parts = list(blocks())
    polar, root = polar_factor(torch.cat([rows for rows, _ in parts]), ridge)
    table = polar.new_zeros(len(sizes), num_slots)
    accumulate(table, polar, torch.cat([slots for _, slots in parts]), sizes)
    return Scores(table, root)


def score_in_passes(blocks: Blocks, sizes: list[int], num_slots: int, num_rows: int, ridge: float) -> Scores:
    """Scores of a tall matrix in two passes over its blocks: one factors it, one reads the scores off."""
    factor = streamed_triangular(rows for rows, _ in blocks())
    root = inverse_root(factor, ridge, max(num_rows, factor.shape[1]))
    table = factor.new_zeros(len(sizes), num_slots)
    for rows, slots in blocks():
        accumulate(table, rows @ root.matrix, slots, sizes)
    return Scores(table, root)


def accumulate(table: Tensor, polar: Tensor, slots: Tensor, sizes: list[int]) -> None:
    """Add squared entries of the polar factor to their (parameter tensor, slot)."""
    by_tensor = torch.stack([part.square().sum(1) for part in polar.split(sizes, dim=1)])
    table.index_add_(1, slots, by_tensor)


def triangular(C: Tensor) -> Tensor:
    """The factor R of C = QR: R'R = C'C."""
    factor: Tensor = torch.linalg.qr(C, mode="r").R
    return factor


def streamed_triangular(parts: Iterable[Tensor]) -> Tensor:
    """The same factor from blocks of rows, gathered until they outnumber the columns."""
    pending: list[Tensor] = []
    for rows in parts:
        pending.append(rows)
        if sum(len(part) for part in pending) >= 3 * rows.shape[1]:
            pending = [triangular(torch.cat(pending))]
    return triangular(torch.cat(pending))


def inverse_root(factor: Tensor, ridge: float, size: int, eps: float | None = None) -> Root:
    """(F'F + ridge)^(-1/2) on the range of F'F.

    Args:
        factor: F, (any, params).
        ridge: non-negative.
        size: the larger side of the matrix that F came from.
        eps: relative rounding of that matrix's entries; by default what its dtype has.

    """
    left, singular, vectors = torch.linalg.svd(factor, full_matrices=False)
    tolerance = size * (torch.finfo(factor.dtype).eps if eps is None else eps)
    largest = float(singular[0]) if len(singular) else 0.0
    keep = singular > tolerance * largest
    left, kept, vectors = left[:, keep], singular[keep], vectors[keep]
    dropped = singular[~keep]
    scale = (kept.square() + ridge).sqrt()
    matrix, polar = (vectors.T / scale) @ vectors, (left * (kept / scale)) @ vectors
    capacity = float((kept.square() / (kept.square() + ridge)).sum())
    return Root(matrix, polar, kept, float(dropped.max()) if len(dropped) else 0.0, tolerance, capacity)


def cached(blocks: Blocks) -> Blocks:
    """The same blocks, computed once and kept."""
    kept: list[Block] = []

    def again() -> Iterator[Block]:
        if not kept:
            kept.extend(blocks())
        yield from kept

    return again
