"""Exact leverage scores of a tall or wide matrix that comes in blocks of rows.

Index convention: C is (rows, params), scaled so that G = C'C. Scores are squared entries of C G^(+1/2), the polar
factor of C: row r and parameter k share [C G^(+1/2)]_rk^2 of capacity (docs/theory.md, section 2), and with a
ridge [C (G + ridge)^(-1/2)]_rk^2. Both sides agree, as C (C'C + l)^(-1/2) = (CC' + l)^(-1/2) C, so the solver works
on the smaller one. Without a ridge G itself is never formed: its triangular factor keeps singular values of C down to
rounding, where G would keep their squares. With a ridge far above G's rounding (`gram_root.gram_error`) G is
formed, which takes a fraction of the time, and its square root taken.

Numerical rank: without a ridge the columns of C are first scaled to length 1, which leaves rank and range as they are
and makes both independent of how parameters are scaled; columns that rounding alone fills are zero. Of what is left
singular values up to max(rows, params) * eps * (the largest) count as zero. That is how far rounding in an orthogonal
factorisation moves them (its errors are those of each column), so no smaller one can be told from zero. From G it is
the square root of that, and a smaller one brings less than `accuracy`.

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
from capalloc._linalg.inverse_root import UNITS_OF_ROUNDING
from capalloc._linalg.row_block import RowBlock

#: Share of the largest singular value above which those that count leave 8 digits of their vectors.
WELL_ABOVE_ROUNDING = 1e-8
#: Steps of the power method that bound a largest singular value, to a tenth or so.
POWER_STEPS = 8
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
        return replace(self, root=replace(self.root, matrix=none, polar=none, slots=None))


def polar_factor(
    C: Tensor, ridge: float = 0.0, eps: float | None = None, units: ParamUnits | None = None
) -> tuple[Tensor, Root]:
    """C (C'C + ridge)^(-1/2), from the smaller side; `eps` and `units` as in `inverse_root`.

    With C = QR it is Q times the polar factor of R: orthonormal to rounding however ill conditioned C is.
    """
    if C.shape[0] >= C.shape[1]:
        Q, R = torch.linalg.qr(C)
        root = inverse_root(R, ridge, max(C.shape), eps, units)
        return Q @ root.polar, root
    if ridge:
        Q, R = torch.linalg.qr(C.T)
        root = inverse_root(R, ridge, max(C.shape), eps)
        return (Q @ root.polar).T, root
    lengths = column_lengths(C, units, eps)
    R = torch.linalg.qr((C * _reciprocal(lengths)).T, mode="r").R
    _, singular, basis = torch.linalg.svd(R, full_matrices=False)
    kept = KeptValues.of(singular, max(C.shape), eps)
    basis = basis[: kept.number].T  # of the range of C
    coordinates = basis.T @ (C * (lengths > 0))
    turned, values = unitary_factor(coordinates if units is None else coordinates * units.scale)
    polar = (basis @ turned) * (lengths > 0)  # of what nothing moves, not even rounding
    return polar, kept.root(C.new_empty(0), values, polar)


def idle_columns(polar: Tensor) -> int:
    """Count the parameters without leverage, from the polar factor (any, params): those that no constraint moves."""
    return int((polar.square().sum(0) < NO_LEVERAGE).sum())


@dataclass(frozen=True)
class AllRows(Fold[tuple[RowBlock, ...]]):
    """All blocks of rows, kept."""

    def begin(self, source: object) -> tuple[RowBlock, ...]:
        return ()

    def advance(self, state: tuple[RowBlock, ...], block: RowBlock) -> tuple[RowBlock, ...]:
        return (*state, block)

    def merge(self, a: tuple[RowBlock, ...], b: tuple[RowBlock, ...]) -> tuple[RowBlock, ...]:
        return a + b


@dataclass(frozen=True)
class ScoreTable(Total):
    """Scores of blocks of rows, from the root of G: capacity by (parameter tensor, slot)."""

    root: Tensor  # (params, params)
    sizes: tuple[int, ...]
    num_slots: int

    def begin(self, source: object) -> tuple[Tensor, ...]:
        return (self.root.new_zeros(len(self.sizes), self.num_slots, dtype=torch.float64),)

    def advance(self, state: tuple[Tensor, ...], block: RowBlock) -> tuple[Tensor, ...]:
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
        return ()

    def advance(self, state: tuple[Tensor, ...], block: RowBlock | Tensor) -> tuple[Tensor, ...]:
        """Gather rows, and factor them once they are many."""
        rows = block if isinstance(block, Tensor) else block.rows
        gathered = (*state, rows)
        return self.finish(gathered) if sum(map(len, gathered)) >= 3 * rows.shape[1] else gathered

    def finish(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the factor alone; none of no rows. Few rows, and a factor, are one as they are."""
        if not state or (len(state) == 1 and len(state[0]) <= state[0].shape[1]):
            return state
        return (torch.linalg.qr(torch.cat(state), mode="r").R,)

    def merge(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Factor two factors."""
        return self.finish(a + b)


def unitary_factor(B: Tensor) -> tuple[Tensor, Tensor]:
    """(BB')^(-1/2) B, for independent rows, and the singular values of B."""
    left, singular, right = torch.linalg.svd(B, full_matrices=False)
    factor: Tensor = left @ right
    return factor, singular


@dataclass(frozen=True)
class ParamUnits:
    """Units of parameters, positive, (params,)."""

    scale: Tensor  # of the coordinates theta / scale that joint entries belong to
    magnitude: Tensor  # |theta| or what is usual: with it columns of C that rounding fills are told from small ones
    filled: Tensor | None = None  # columns that are known to be but rounding


def column_lengths(C: Tensor, units: ParamUnits | None, eps: float | None = None) -> Tensor:
    """Lengths of the columns of C, or of its triangular factor: 0 where they are but rounding."""
    lengths = torch.linalg.vector_norm(C, dim=0)
    rounding = UNITS_OF_ROUNDING * (torch.finfo(C.dtype).eps if eps is None else eps)
    seen = torch.zeros_like(lengths, dtype=torch.bool)
    for told in (lengths, lengths if units is None else lengths * units.magnitude):
        seen |= told > rounding * told.amax() if len(told) else seen
    if units is not None and units.filled is not None:
        seen &= ~units.filled
    found: Tensor = lengths.where(seen, 0.0)
    return found


def _reciprocal(lengths: Tensor) -> Tensor:
    found: Tensor = torch.where(lengths > 0, 1 / lengths, 0.0)
    return found


def rank_of_factor(factor: Tensor, size: int, units: ParamUnits | None = None) -> int:
    """The rank of a matrix from its triangular factor, as `inverse_root` counts it."""
    scaled = factor * _reciprocal(column_lengths(factor, units))
    least = size * torch.finfo(scaled.dtype).eps * norm_from_below(scaled)
    return number_above(scaled, least) if least > 0 else 0  # of zeros, which have no factor


def number_above(matrix: Tensor, least: float) -> int:
    """Count the singular values above a positive number, by inertia: a third of the time that finding them takes.

    The eigenvalues of [[-least, A], [A', -least]] are s - least, -s - least and -least; its factor L D L' has as many
    positive ones in the blocks of D.
    """
    rows, columns = matrix.shape
    both = matrix.new_zeros(rows + columns, rows + columns)
    both[:rows, rows:], both[rows:, :rows] = matrix, matrix.T
    both.diagonal().fill_(-least)
    found, pivots = torch.linalg.ldl_factor(both)
    diagonal, beside = found.diagonal(), found.diagonal(-1)
    paired = pivots < 0  # blocks of two, one after the other
    first = (paired & (paired.cumsum(0) % 2 == 1)).nonzero().flatten()
    a, b, c = diagonal[first], beside[first], diagonal[first + 1]
    indefinite = a * c < b.square()
    return int((diagonal[~paired] > 0).sum() + indefinite.sum() + 2 * (~indefinite & (a > 0)).sum())


def norm_from_below(matrix: Tensor) -> float:
    """A bound below the largest singular value, and near it: |A x| / |x| for the x that some steps of A'A lead to."""
    x = matrix.new_ones(matrix.shape[1])
    for _ in range(POWER_STEPS):
        x = matrix.T @ (matrix @ x)
        x = x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)
    return float(torch.linalg.vector_norm(matrix @ x))


@dataclass(frozen=True)
class KeptValues:
    """The singular values that count."""

    singular: Tensor
    number: int
    tolerance: float

    @classmethod
    def of(cls, singular: Tensor, size: int, eps: float | None = None) -> KeptValues:
        """Those above `size` * eps * (the largest)."""
        tolerance = size * (torch.finfo(singular.dtype).eps if eps is None else eps)
        largest = float(singular[0]) if len(singular) else 0.0
        return cls(singular, int((singular > tolerance * largest).sum()), tolerance)

    @property
    def clear(self) -> bool:
        """True where those that count lie so far above rounding that vectors are known as well as numbers."""
        return self.number > 0 and float(self.singular[self.number - 1]) > WELL_ABOVE_ROUNDING * float(self.singular[0])

    @property
    def dropped(self) -> float:
        """The largest that does not count."""
        return float(self.singular[self.number]) if self.number < len(self.singular) else 0.0

    @property
    def counted(self) -> Tensor:
        """Those that count, (rank,)."""
        return self.singular[: self.number]

    def root(self, matrix: Tensor, values: Tensor, polar: Tensor, capacity: float | None = None) -> Root:
        """The root of these, whose values are `values`."""
        counted, whole = self.counted, float(self.number) if capacity is None else capacity
        edge = (float(counted[-1]), float(counted[0])) if self.number else (0.0, 0.0)
        return Root(matrix, values, self.dropped, self.tolerance, whole, polar, edge=edge)


def inverse_root(
    factor: Tensor, ridge: float, size: int, eps: float | None = None, units: ParamUnits | None = None
) -> Root:
    """(F'F + ridge)^(-1/2) on the range of F'F.

    Args:
        factor: F, (any, params).
        ridge: non-negative.
        size: the larger side of the matrix that F came from.
        eps: relative rounding of that matrix's entries; by default what its dtype has.
        units: without a ridge, of the parameters; by default all 1. The matrix is turned so that F times it is the
            polar factor of F D on the range of F, D of the units' scale.

    """
    scale = torch.ones_like(factor[0]) if units is None or ridge else units.scale
    left, singular, vectors = torch.linalg.svd(factor * scale, full_matrices=False)
    kept = KeptValues.of(singular, size, eps)
    s, left, vectors = kept.counted, left[:, : kept.number], vectors[: kept.number]
    if ridge:
        whole = (s.square() + ridge).sqrt()
        capacity = float((s / whole).square().sum())
        return kept.root((vectors.T / whole) @ vectors, s, (left * (s / whole)) @ vectors, capacity)
    lengths = column_lengths(factor, units, eps)
    equal = factor * _reciprocal(lengths)
    # s_i(F / lengths) <= s_i(F D) max 1 / (D lengths): where these count as zero, no more count than do here.
    stretch = _reciprocal(lengths * scale).max() if len(scale) else 0.0
    few = kept.clear and kept.dropped * float(stretch) <= kept.tolerance * norm_from_below(equal)
    if few or (kept.clear and KeptValues.of(torch.linalg.svdvals(equal), size, eps).number == kept.number):
        return kept.root((scale[:, None] * vectors.T / s) @ vectors, s, (left @ vectors) * (lengths > 0))
    left, singular, vectors = torch.linalg.svd(equal, full_matrices=False)
    kept = KeptValues.of(singular, size, eps)
    s, left, vectors = kept.counted, left[:, : kept.number], vectors[: kept.number]
    turned, values = unitary_factor(s[:, None] * vectors * lengths * scale)
    return kept.root((vectors.T * _reciprocal(lengths)[:, None] / s) @ turned, values, (left @ turned) * (lengths > 0))
