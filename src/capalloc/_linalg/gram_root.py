"""(G + ridge)^(-1/2) from the Gram matrix G = C'C of rows of constraints, in the lowest precision that serves.

Index convention: C is (rows, params), in blocks of rows; G is (params, params).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.row_block import RowBlock, joined
from capalloc._linalg.symmetric import ROUNDED_TERMS, add_gram, mirror
from capalloc._runtime.passes import ALONE, Pass, Passes

#: Rounding errors are taken as independent, and their sum to stay within this many standard deviations.
DEVIATIONS = 4.0
#: Rows that are gathered before their products are added to G: every addition passes over all of it.
GATHERED = 512
#: Reading scores off a root in some precision moves them by a few of its eps: accuracies below so many rule it out.
READING = 16


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
    blocks: Callable[..., Iterable[RowBlock]], ridge: float, num_rows: int, accuracy: float, passes: Passes = ALONE
) -> Root | None:
    """(G + ridge)^(-1/2) from G, in the lowest precision that is accurate enough by `gram_error`; None if none is."""
    if ridge == 0:
        return None
    for dtype, terms in ((torch.float32, ROUNDED_TERMS), (torch.float64, num_rows)):
        if accuracy < READING * torch.finfo(dtype).eps:
            continue
        most = largest_trace(accuracy, ridge, terms, dtype)
        gram = whole_gram(passes.fold(f"Gram matrix in {dtype}", blocks, gram_pass(dtype, most)), most)
        if gram is not None:
            return root_of_gram(gram, ridge, max(num_rows, len(gram)), dtype)
    return None


def largest_trace(accuracy: float, ridge: float, terms: int, dtype: torch.dtype) -> float:
    """Of a Gram matrix whose `gram_error` is at most `accuracy`."""
    return accuracy / (1 + accuracy) * ridge / (DEVIATIONS * math.sqrt(terms) * torch.finfo(dtype).eps / 2)


def streamed_gram(blocks: Iterable[RowBlock], dtype: torch.dtype, most: float = math.inf) -> Tensor | None:
    """G = C'C from blocks of rows, products in `dtype`, sums in float64; None as soon as its trace exceeds `most`."""
    return whole_gram(gram_pass(dtype, most).over(blocks), most)


@dataclass(frozen=True)
class GramSum:
    """The lower triangle of G so far, blocks that are not in it yet, and the trace of both."""

    gram: Tensor | None = None
    pending: tuple[RowBlock, ...] = ()
    trace: float = 0.0

    def added(self, dtype: torch.dtype) -> GramSum:
        """The same with no blocks pending, by products in `dtype`."""
        if not self.pending:
            return self
        block = joined(self.pending)
        p = block.rows.shape[1]
        gram = block.rows.new_zeros(p, p, dtype=torch.float64) if self.gram is None else self.gram
        block.add_gram(gram, dtype)
        return GramSum(gram, (), self.trace)


def gram_pass(dtype: torch.dtype, most: float) -> Pass[GramSum]:
    """Sums for G over blocks of rows; a trace above `most` ends the pass and leaves nothing else."""

    def advance(state: GramSum, block: RowBlock) -> GramSum:
        trace = state.trace + float(torch.linalg.vector_norm(block.rows)) ** 2
        if trace > most:
            return GramSum(trace=trace)
        grown = GramSum(state.gram, (*state.pending, block), trace)
        return grown.added(dtype) if sum(len(part.rows) for part in grown.pending) >= GATHERED else grown

    def merge(a: GramSum, b: GramSum) -> GramSum:
        trace = a.trace + b.trace
        if trace > most:
            return GramSum(trace=trace)
        if a.gram is None or b.gram is None:  # a process without examples
            return GramSum(b.gram if a.gram is None else a.gram, (), trace)
        return GramSum(a.gram + b.gram, (), trace)

    return Pass(GramSum(), advance, merge, lambda state: state.added(dtype), lambda state: state.trace > most)


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
    scale = (values + ridge) ** -0.25  # half of the root on either side: a symmetric product
    half = (vectors * scale).to(dtype)
    matrix = torch.empty_like(half)
    add_gram(matrix, half, fresh=True)
    tolerance = math.sqrt(size * torch.finfo(dtype).eps)
    singular = values.sqrt()
    keep = singular > tolerance * singular[0]
    dropped = singular[~keep]
    capacity = float((values / (values + ridge)).sum())
    largest = float(dropped.max()) if len(dropped) else 0.0
    return Root(mirror(matrix), singular[keep], largest, tolerance, capacity, gram.new_empty(0))
