"""Rows of constraints in blocks, and products with them that skip the columns where a whole group of rows is zero.

Index convention: a block is (rows, params); its rows are groups of equal height, one after the other, one for each
output. A weight of the last layer touches its own output alone, so that most columns of that layer are zero in most
groups. Columns are told apart in tiles of `COLUMN_TILE`: a tile is empty in a group where all its numbers are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from capalloc._linalg.symmetric import add_product

#: Columns of a tile.
COLUMN_TILE = 16
#: Share of filled tiles from which on nothing is skipped, and number of spans: many narrow products are slow.
FILLED, SPANS = 0.9, 8

Span = tuple[int, int]


@dataclass(frozen=True)
class RowBlock:
    """Rows of constraints, the slot of each, and which tiles of columns each group fills; made by `block_of`."""

    rows: Tensor  # (r, params)
    slots: Tensor  # (r,)
    filled: Tensor  # (groups, tiles) of booleans

    def spans(self) -> tuple[list[Span], list[list[Span]]]:
        """Columns that every group fills, and those that each fills beside them; all for all if little is empty."""
        params = self.rows.shape[1]
        shared = self.filled.all(0)
        common = _spans(shared, params)
        own = [_spans(filled & ~shared, params) for filled in self.filled]
        if self.filled.double().mean() >= FILLED or max(map(len, [common, *own])) > SPANS:
            return [(0, params)], [[] for _ in own]
        return common, own

    def times(self, matrix: Tensor) -> Tensor:
        """Rows times a matrix (params, columns), in the matrix's dtype."""
        rows = self.rows.to(matrix.dtype)
        shared, own = self.spans()
        out = _add_times(None, rows, matrix, shared)
        for into, part, spans in zip(out.chunk(len(own)), rows.chunk(len(own)), own, strict=True):
            _add_times(into, part, matrix, spans)
        return out

    def add_gram(self, strips: Sequence[Tensor], dtype: torch.dtype, fresh: bool = False) -> None:
        """Lower triangle of G += C'C for these rows C, or G = C'C where it is `fresh`; G in strips of its rows.

        Products are taken in `dtype`, sums in that of G.
        """
        rows = self.rows.to(dtype)
        shared, own = self.spans()
        skips = shared != [(0, rows.shape[1])]
        for strip in strips if fresh and skips else []:
            strip.zero_()
        _add_pairs(strips, rows, shared, shared, fresh and not skips)
        for part, spans in zip(rows.chunk(len(own)), own, strict=True):
            _add_pairs(strips, part, shared + spans, spans)


def block_of(rows: Tensor, slots: Tensor, groups: int = 1) -> RowBlock:
    """A block of rows in `groups` parts of equal height; one group counts as filled."""
    tiles = -(-rows.shape[1] // COLUMN_TILE)
    if groups == 1:
        return RowBlock(rows, slots, torch.ones(1, tiles, dtype=torch.bool, device=rows.device))
    filled = torch.stack([(part != 0).any(0) for part in rows.chunk(groups)])  # no mask as large as the rows
    return RowBlock(
        rows, slots, F.pad(filled, (0, tiles * COLUMN_TILE - rows.shape[1])).unflatten(1, (tiles, COLUMN_TILE)).any(2)
    )


def joined(blocks: Sequence[RowBlock]) -> RowBlock:
    """Blocks of as many groups each as one: rows of a group stay together."""
    if len(blocks) == 1:
        return blocks[0]
    groups = len(blocks[0].filled)
    rows = torch.cat([block.rows.unflatten(0, (groups, -1)) for block in blocks], 1).flatten(0, 1)
    slots = torch.cat([block.slots.unflatten(0, (groups, -1)) for block in blocks], 1).flatten()
    return RowBlock(rows, slots, torch.stack([block.filled for block in blocks]).any(0))


def _spans(filled: Tensor, params: int) -> list[Span]:
    """Runs of filled tiles as columns, from start to stop."""
    runs = [(full, sum(1 for _ in run)) for full, run in groupby(filled.tolist())]
    ends = [0]
    for _, tiles in runs:
        ends.append(min(ends[-1] + tiles * COLUMN_TILE, params))
    return [span for (full, _), span in zip(runs, pairwise(ends), strict=True) if full]


def _add_times(out: Tensor | None, rows: Tensor, matrix: Tensor, spans: Sequence[Span]) -> Tensor:
    """out += rows times matrix over the columns of `spans`."""
    for start, stop in spans:
        left, right = rows[:, start:stop], matrix[start:stop]
        out = left @ right if out is None else out.addmm_(left, right)
    return rows.new_zeros(len(rows), matrix.shape[1]) if out is None else out


def _add_pairs(
    strips: Sequence[Tensor], rows: Tensor, spans: Sequence[Span], new: Sequence[Span], fresh: bool = False
) -> None:
    """Lower triangle of G += rows'rows, for pairs of spans that one of `new` is in; G in strips of its rows."""
    stop = 0
    for strip in strips:
        start, stop = stop, stop + len(strip)
        for span in spans:
            top, bottom = max(span[0], start), min(span[1], stop)
            for left, right in (spans if span in new else new) if top < bottom else []:
                right = min(right, bottom)
                if left < right:
                    into = strip[top - start : bottom - start, left:right]
                    add_product(into, rows[:, top:bottom].T, rows[:, left:right], fresh)
