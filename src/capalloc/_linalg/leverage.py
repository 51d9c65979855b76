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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from capalloc._linalg.gram_root import Root, gram_root
from capalloc._linalg.row_block import RowBlock, block_of
from capalloc._runtime.passes import ALONE, Pass, Passes

#: Relative error that the rounding of products may leave in a capacity.
ACCURACY = 1e-8

#: A re-iterable pass over blocks of rows; with a number, from that block on.
Blocks = Callable[..., Iterable[RowBlock]]


@dataclass(frozen=True)
class Scores:
    """Capacity per (parameter tensor, slot), and the root it was made with."""

    table: Tensor
    root: Root

    def small(self) -> Scores:
        """Without the root's matrices, which nobody needs after the table."""
        none = self.root.matrix.new_empty(0)
        return replace(self, root=replace(self.root, matrix=none, polar=none))


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


def score_in_memory(
    blocks: Blocks, sizes: list[int], num_slots: int, ridge: float, accuracy: float = ACCURACY, passes: Passes = ALONE
) -> Scores:
    """Scores from all rows at once; `accuracy` as in `score_in_passes`. One process solves for all."""

    def solve() -> Scores | None:
        keep: Pass[tuple[RowBlock, ...]] = Pass((), lambda kept, block: (*kept, block), lambda a, b: a + b)
        parts = passes.gather("rows", blocks, keep)
        return None if parts is None else score_rows(parts, sizes, num_slots, ridge, accuracy)

    return passes.once("scores", lambda: cast(Scores, solve()))


def score_rows(parts: Sequence[RowBlock], sizes: list[int], num_slots: int, ridge: float, accuracy: float) -> Scores:
    """Scores of the rows in all of `parts`."""
    C, slots = torch.cat([block.rows for block in parts]), torch.cat([block.slots for block in parts])
    root = gram_root(lambda: [block_of(C.T, slots)], ridge, C.shape[1], accuracy)
    if root is None:
        polar, root = polar_factor(C, ridge)
    else:
        polar = root.matrix @ C.to(root.matrix.dtype)
    table = C.new_zeros(len(sizes), num_slots)
    accumulate(table, polar, slots, sizes)
    return Scores(table, root)


def score_in_passes(
    blocks: Blocks,
    sizes: list[int],
    num_slots: int,
    num_rows: int,
    ridge: float,
    accuracy: float = ACCURACY,
    passes: Passes = ALONE,
) -> Scores:
    """Scores of a tall matrix in two passes over its blocks: one factors it, one reads the scores off.

    With a ridge, products are taken in the lowest precision that keeps the relative error of capacities within
    `accuracy` by `gram_error`: float32, float64, or those of an orthogonal factorisation.
    """

    def factored() -> Root:
        root = gram_root(blocks, ridge, num_rows, accuracy, passes)
        if root is None:
            (factor,) = passes.fold("triangular factor", parts, TRIANGLE)
            root = inverse_root(factor, ridge, max(num_rows, factor.shape[1]))
        return root

    def parts(*start: int) -> Iterator[Tensor]:
        return (block.rows for block in blocks(*start))

    root = passes.once("root", factored)

    def add(table: Tensor, block: RowBlock) -> Tensor:
        accumulate(table, block.times(root.matrix), block.slots, sizes)
        return table

    table = passes.fold("table", blocks, Pass(root.singular.new_zeros(len(sizes), num_slots), add, torch.add))
    return Scores(table, root)


def accumulate(table: Tensor, polar: Tensor, slots: Tensor, sizes: list[int]) -> None:
    """Add squared entries of the polar factor to their (parameter tensor, slot)."""
    by_tensor = torch.stack([part.square().sum(1) for part in polar.split(sizes, dim=1)])
    table.index_add_(1, slots, by_tensor.to(table.dtype))


def triangular(C: Tensor) -> Tensor:
    """The factor R of C = QR: R'R = C'C."""
    factor: Tensor = torch.linalg.qr(C, mode="r").R
    return factor


def streamed_triangular(parts: Iterable[Tensor]) -> Tensor:
    """The same factor from blocks of rows, gathered until they outnumber the columns."""
    return TRIANGLE.over(parts)[0]


def _gathered(pending: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    pending = (*pending, rows)
    return _factored(pending) if sum(len(part) for part in pending) >= 3 * rows.shape[1] else pending


def _factored(pending: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (triangular(torch.cat(pending)),) if pending else ()


#: The triangular factor, alone in a tuple, of blocks of rows.
TRIANGLE: Pass[tuple[Tensor, ...]] = Pass((), _gathered, lambda a, b: _factored(a + b), _factored)


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
    return Root(matrix, kept, float(dropped.max()) if len(dropped) else 0.0, tolerance, capacity, polar)


def cached(blocks: Blocks) -> Blocks:
    """The same blocks, kept once a pass over all of them has come to its end."""
    kept: list[RowBlock] = []

    def again(start: int = 0) -> Iterator[RowBlock]:
        if kept or start:
            yield from kept[start:] or blocks(start)
            return
        fresh = []
        for block in blocks():
            fresh.append(block)
            yield block
        kept.extend(fresh)

    return again
