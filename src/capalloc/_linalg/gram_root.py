"""(G + ridge)^(-1/2) from the Gram matrix G = C'C of rows of constraints, in the lowest precision that serves.

Index convention: C is (rows, params), in blocks of rows; G is (params, params).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._linalg.fold import Fold
from capalloc._linalg.row_block import RowBlock, joined
from capalloc._linalg.slot_grams import SlotGrams
from capalloc._linalg.symmetric import ROUNDED_TERMS, add_gram, eigh, mirror, strips_of

#: Rounding errors are taken as independent, and their sum to stay within this many standard deviations.
DEVIATIONS = 4.0
#: Rows that are gathered before their products are added to G, or rows of each slot to its own: every addition passes
#: over all of it.
GATHERED = 512
#: Reading scores off a root in some precision moves them by a few of its eps: accuracies below so many rule it out.
READING = 16


@dataclass(frozen=True)
class Root:
    """(F'F + ridge)^(-1/2) on the range of F'F, and the singular values of F that it was made from."""

    matrix: Tensor
    singular: Tensor  # those that count, in decreasing order; without a ridge in the coordinates of joint entries
    dropped: float  # the largest that counts as zero; without a ridge of columns of length 1
    tolerance: float  # relative to the largest
    capacity: float  # sum of s^2 / (s^2 + ridge)
    polar: Tensor  # F times the matrix, (rows of F, params); empty where only F'F was known
    half_examples: int = 0  # of the first half of the data, where a pass knows one
    half_capacity: float = 0.0  # on them alone
    edge: tuple[float, float] = (0.0, 0.0)  # the smallest that counts and the largest, beside `dropped`
    slots: SlotGrams | None = None  # F'F by slot, where it was kept

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


def largest_trace(accuracy: float, ridge: float, terms: float, dtype: torch.dtype) -> float:
    """Return the trace of a Gram matrix above which its `gram_error` exceeds `accuracy`."""
    return accuracy / (1 + accuracy) * ridge / (DEVIATIONS * math.sqrt(terms) * torch.finfo(dtype).eps / 2)


def gram_passes(ridge: float, num_rows: int, accuracy: float, num_slots: int = 0) -> Iterator[GramPass]:
    """Yield the passes that may give G as `accuracy` asks, from the lowest precision up; none without a ridge.

    With a number of slots the one in float64 keeps G by slot.
    """
    for dtype, terms, slots in ((torch.float32, ROUNDED_TERMS, 0), (torch.float64, num_rows, num_slots)):
        if ridge > 0 and accuracy >= READING * torch.finfo(dtype).eps:
            yield GramPass(dtype, largest_trace(accuracy, ridge, terms, dtype), slots)


@dataclass(frozen=True)
class GramSum:
    """The lower triangle of G so far, whole or by slot, blocks that are not in it yet, and the trace of both."""

    gram: Tensor | SlotGrams | None = None
    pending: tuple[RowBlock, ...] = ()
    trace: float = 0.0


@dataclass(frozen=True)
class GramPass(Fold[GramSum]):
    """G = C'C from blocks of rows, products in `dtype`, sums in float64; it ends once the trace exceeds `most`.

    With a number of slots, in float64, G is kept by slot, which one process can do and no file holds.
    """

    dtype: torch.dtype
    most: float = math.inf
    num_slots: int = 0

    def begin(self, source: object) -> GramSum:
        return GramSum()

    def advance(self, state: GramSum, block: RowBlock) -> GramSum:
        """Gather rows, and add their products once they are many."""
        trace = state.trace + float(torch.linalg.vector_norm(block.rows)) ** 2
        grown = GramSum(state.gram, (*state.pending, block), trace)
        if self.enough(grown):
            return GramSum(trace=trace)
        many = GATHERED * max(self.num_slots, 1)
        return self.finish(grown) if sum(len(part.rows) for part in grown.pending) >= many else grown

    def finish(self, state: GramSum) -> GramSum:
        """Add the products of the rows gathered."""
        if not state.pending:
            return state
        rows, gram = state.pending[0].rows, state.gram
        if isinstance(gram, SlotGrams):
            gram.add(state.pending)
        elif self.num_slots:
            gram = SlotGrams.of(state.pending, self.num_slots)
        else:
            p = rows.shape[1]
            gram = rows.new_zeros(p, p, dtype=torch.float64) if gram is None else gram
            joined(state.pending).add_gram([gram[start:stop] for start, stop in strips_of(p)], self.dtype)
        return GramSum(gram, (), state.trace)

    def copied(self, state: GramSum) -> GramSum:
        """Return G alone, not by slot."""
        return replace(state, gram=self.whole(replace(state, trace=0.0))) if self.num_slots else super().copied(state)

    def merge(self, a: GramSum, b: GramSum) -> GramSum:
        """Add two sums; either may be of no rows."""
        both = GramSum(trace=a.trace + b.trace)
        if self.enough(both):
            return both
        grams = [part.gram for part in (a, b) if isinstance(part.gram, Tensor)]
        return replace(both, gram=grams[0] + grams[1] if len(grams) == 2 else grams[0] if grams else None)

    def enough(self, state: GramSum) -> bool:
        """Return True for a trace that is too large for the precision."""
        return state.trace > self.most

    def whole(self, found: GramSum) -> Tensor | None:
        """Return both triangles of G; None where its trace is too large."""
        if found.gram is None or self.enough(found):
            return None
        return found.gram.total() if isinstance(found.gram, SlotGrams) else mirror(found.gram)

    def by_slot(self, found: GramSum) -> SlotGrams | None:
        """Return G by slot where scores read off it are accurate enough too; None otherwise.

        They move by its rounding as well: an entry of G_i moves a score c' (G + ridge)^-1 c of its slot by that over
        the ridge, so the roots of both numbers of terms add.
        """
        accurate = self.num_slots and found.trace * (1 + self.num_slots**-0.5) <= self.most
        return found.gram if accurate and isinstance(found.gram, SlotGrams) else None


def root_of_gram(gram: Tensor, ridge: float, size: int, dtype: torch.dtype) -> Root:
    """(G + ridge)^(-1/2), in `dtype`, from G of products in it."""
    values, vectors = eigh(gram)
    values = values.clamp(min=0).flip(0)
    vectors = vectors.flip(1)
    scale = (values + ridge) ** -0.25  # half of the root on either side: a symmetric product
    half = (vectors * scale).to(dtype)
    matrix = torch.empty_like(half, memory_format=torch.contiguous_format)  # as a file gives it back
    add_gram(matrix, half, fresh=True)
    tolerance = math.sqrt(size * torch.finfo(dtype).eps)
    singular = values.sqrt()
    keep = singular > tolerance * singular[0]
    dropped = singular[~keep]
    capacity = float((values / (values + ridge)).sum())
    largest = float(dropped.max()) if len(dropped) else 0.0
    return Root(mirror(matrix), singular[keep], largest, tolerance, capacity, gram.new_empty(0))
