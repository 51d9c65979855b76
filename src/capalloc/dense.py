"""Exact leverage scores of a tall or wide matrix that comes in blocks of rows.

Index convention: C is (rows, params), scaled so that G = C'C. Scores are squared entries of C G^(+1/2), the polar
factor of C: row r and parameter k share [C G^(+1/2)]_rk^2 of capacity (docs/theory.md, section 2), and with a
ridge [C (G + ridge)^(-1/2)]_rk^2. Both sides agree, as C (C'C + l)^(-1/2) = (CC' + l)^(-1/2) C, so the solver works
on the smaller one. Without a ridge G itself is never formed: its triangular factor keeps singular values of C down to
rounding, where G would keep their squares. With a ridge far above G's rounding (`gram_error`) G is formed, which takes
a fraction of the time, and its square root taken.

Numerical rank: singular values of C up to max(rows, params) * eps * (the largest) count as zero. That is how far
rounding in an orthogonal factorisation moves them, so no smaller one can be told from zero. From G it is the square
root of that, and a smaller one brings less than `accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from capalloc.passes import ALONE, Pass, Passes
from capalloc.symmetric import TERMS, add_gram, mirror

#: Relative error that the rounding of products may leave in a capacity.
ACCURACY = 1e-8
#: Rounding errors are taken as independent, and their sum to stay within this many standard deviations.
DEVIATIONS = 4.0
#: Rows that are gathered before their products are added to G: every addition passes over all of it.
GATHERED = 512

#: A re-iterable pass over blocks, rows (r, params) and the slot of each row (r,); with a number, from that block on.
Block = tuple[Tensor, Tensor]
Blocks = Callable[..., Iterable[Block]]


@dataclass(frozen=True)
class Root:
    """(F'F + ridge)^(-1/2) on the range of F'F, and the singular values of F that it was made from."""

    matrix: Tensor
    singular: Tensor  # those that count, in decreasing order
    dropped: float  # the largest that counts as zero
    tolerance: float  # relative to the largest
    capacity: float  # sum of s^2 / (s^2 + ridge)
    polar: Tensor  # F times the matrix, (rows of F, params); empty where only F'F was known

    @property
    def rank(self) -> int:
        """Number of singular values that count."""
        return len(self.singular)


@dataclass(frozen=True)
class Scores:
    """Capacity per (parameter tensor, slot), and the root it was made with."""

    table: Tensor
    root: Root

    def small(self) -> Scores:
        """Without the root's matrices, which nobody needs after the table."""
        none = self.table.new_empty(0)
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
        keep: Pass[tuple[Block, ...]] = Pass((), lambda kept, block: (*kept, block), lambda a, b: a + b)
        parts = passes.gather("rows", blocks, keep)
        return None if parts is None else score_rows(parts, sizes, num_slots, ridge, accuracy)

    return passes.once("scores", lambda: cast(Scores, solve()))


def score_rows(parts: Sequence[Block], sizes: list[int], num_slots: int, ridge: float, accuracy: float) -> Scores:
    """Scores of the rows in all of `parts`."""
    C = torch.cat([rows for rows, _ in parts])
    root = gram_root(lambda: [C.T], ridge, C.shape[1], accuracy)
    if root is None:
        polar, root = polar_factor(C, ridge)
    else:
        polar = root.matrix @ C.to(root.matrix.dtype)
    table = C.new_zeros(len(sizes), num_slots)
    accumulate(table, polar, torch.cat([slots for _, slots in parts]), sizes)
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
        root = gram_root(parts, ridge, num_rows, accuracy, passes)
        if root is None:
            (factor,) = passes.fold("triangular factor", parts, TRIANGLE)
            root = inverse_root(factor, ridge, max(num_rows, factor.shape[1]))
        return root

    def parts(*start: int) -> Iterator[Tensor]:
        return (rows for rows, _ in blocks(*start))

    root = passes.once("root", factored)

    def add(table: Tensor, block: Block) -> Tensor:
        accumulate(table, block[0].to(root.matrix.dtype) @ root.matrix, block[1], sizes)
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


def gram_error(trace: float, ridge: float, terms: int, dtype: torch.dtype) -> float:
    """Bound on the relative error of capacities read off a Gram matrix whose entries sum `terms` products in `dtype`.

    Rounding moves the entries of G = C'C by up to c sqrt(terms) u |C|'|C|, u half of the dtype's eps, c = `DEVIATIONS`
    (independent rounding errors: N. Higham, T. Mary, SIAM J. Sci. Comput. 41, 2019), which has a norm of at most
    d = c sqrt(terms) u trace(G). So G + ridge moves by at most d / ridge of itself, as a quadratic form, and every
    leverage score c' (G + ridge)^-1 c by at most d / (ridge - d) of itself.
    """
    d = DEVIATIONS * math.sqrt(terms) * torch.finfo(dtype).eps / 2 * trace
    return d / (ridge - d) if ridge > d else math.inf


def gram_root(
    parts: Callable[..., Iterable[Tensor]], ridge: float, num_rows: int, accuracy: float, passes: Passes = ALONE
) -> Root | None:
    """(G + ridge)^(-1/2) from G, in the lowest precision that is accurate enough by `gram_error`; None if none is."""
    if ridge == 0:
        return None
    for dtype, terms in ((torch.float32, TERMS), (torch.float64, num_rows)):
        most = largest_trace(accuracy, ridge, terms, dtype)
        gram = whole_gram(passes.fold(f"Gram matrix in {dtype}", parts, gram_pass(dtype, most)), most)
        if gram is not None:
            return root_of_gram(gram, ridge, max(num_rows, len(gram)), dtype)
    return None


def largest_trace(accuracy: float, ridge: float, terms: int, dtype: torch.dtype) -> float:
    """Of a Gram matrix whose `gram_error` is at most `accuracy`."""
    return accuracy / (1 + accuracy) * ridge / (DEVIATIONS * math.sqrt(terms) * torch.finfo(dtype).eps / 2)


def streamed_gram(parts: Iterable[Tensor], dtype: torch.dtype, most: float = math.inf) -> Tensor | None:
    """G = C'C from blocks of rows, products in `dtype`, sums in float64; None as soon as its trace exceeds `most`."""
    return whole_gram(gram_pass(dtype, most).over(parts), most)


@dataclass(frozen=True)
class GramSum:
    """The lower triangle of G so far, rows that are not in it yet, and the trace of both."""

    gram: Tensor | None = None
    pending: tuple[Tensor, ...] = ()
    trace: float = 0.0

    def added(self) -> GramSum:
        """The same with no rows pending."""
        if not self.pending:
            return self
        rows = self.pending[0] if len(self.pending) == 1 else torch.cat(self.pending)
        p = rows.shape[1]
        gram = rows.new_empty(p, p, dtype=torch.float64) if self.gram is None else self.gram
        add_gram(gram, rows.T, fresh=self.gram is None)
        return GramSum(gram, (), self.trace)


def gram_pass(dtype: torch.dtype, most: float) -> Pass[GramSum]:
    """Sums for G over blocks of rows; a trace above `most` ends the pass and leaves nothing else."""

    def advance(state: GramSum, rows: Tensor) -> GramSum:
        trace = state.trace + float(torch.linalg.vector_norm(rows)) ** 2
        if trace > most:
            return GramSum(trace=trace)
        grown = GramSum(state.gram, (*state.pending, rows.to(dtype)), trace)
        return grown.added() if sum(len(part) for part in grown.pending) >= GATHERED else grown

    def merge(a: GramSum, b: GramSum) -> GramSum:
        trace = a.trace + b.trace
        if trace > most:
            return GramSum(trace=trace)
        if a.gram is None or b.gram is None:  # a process without examples
            return GramSum(b.gram if a.gram is None else a.gram, (), trace)
        return GramSum(a.gram + b.gram, (), trace)

    return Pass(GramSum(), advance, merge, GramSum.added, lambda state: state.trace > most)


def whole_gram(found: GramSum, most: float) -> Tensor | None:
    """Both triangles of G; None where its trace exceeds `most`."""
    if found.trace > most:
        return None
    assert found.gram is not None
    return mirror(found.gram)


def root_of_gram(gram: Tensor, ridge: float, size: int, dtype: torch.dtype) -> Root:
    """(G + ridge)^(-1/2), in `dtype`, from G of products in it."""
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0).flip(0)
    vectors = vectors.flip(1)
    scale = (values + ridge) ** -0.25  # half of the root on either side: the product is symmetric to the last digit
    half = (vectors * scale).to(dtype)
    tolerance = math.sqrt(size * torch.finfo(dtype).eps)
    singular = values.sqrt()
    keep = singular > tolerance * singular[0]
    dropped = singular[~keep]
    capacity = float((values / (values + ridge)).sum())
    largest = float(dropped.max()) if len(dropped) else 0.0
    return Root(half @ half.T, singular[keep], largest, tolerance, capacity, gram.new_empty(0))


def cached(blocks: Blocks) -> Blocks:
    """The same blocks, kept once a pass over all of them has come to its end."""
    kept: list[Block] = []

    def again(start: int = 0) -> Iterator[Block]:
        if kept or start:
            yield from kept[start:] or blocks(start)
            return
        fresh = []
        for block in blocks():
            fresh.append(block)
            yield block
        kept.extend(fresh)

    return again
