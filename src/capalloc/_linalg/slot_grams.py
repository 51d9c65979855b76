"""The Gram matrix of the rows of every slot, from which scores are read without the rows.

With C_i the rows of slot i, G_i = C_i'C_i and R = (G + ridge)^(-1/2), which is symmetric, the score of a tensor t is
|C_i R_t|^2 = <R_t R_t', G_i>, R_t the columns of R that are t's. Index convention: strips of rows of the lower
triangles, one after the other, (slots, height, columns up to the diagonal).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.row_block import RowBlock, joined
from capalloc._linalg.symmetric import blocks_of, mirror, strips_of

#: Numbers of R_t R_t' of all tensors that are made at a time, and rows at least: narrower products are slow.
READ_PIECE, LEAST_READ = 2**19, 64


@dataclass(frozen=True)
class SlotGrams:
    """The lower triangle of G_i for every slot."""

    strips: tuple[Tensor, ...]

    @classmethod
    def of(cls, blocks: Sequence[RowBlock], num_slots: int) -> SlotGrams:
        """Those of some rows."""
        rows = blocks[0].rows
        found = cls(tuple(rows.new_empty(num_slots, b - a, b) for a, b in strips_of(rows.shape[1])))
        found.add(blocks, fresh=True)
        return found

    def add(self, blocks: Sequence[RowBlock], fresh: bool = False) -> None:
        """Add the products of more rows; to nothing where it is `fresh`."""
        for slot, block in enumerate(_by_slot(blocks, len(self.strips[0]))):
            strips = [strip[slot] for strip in self.strips]
            if block is not None:
                block.add_gram(strips, block.rows.dtype, fresh)
            elif fresh:
                for strip in strips:
                    strip.zero_()

    def total(self) -> Tensor:
        """G, both triangles."""
        n = self.strips[-1].shape[2]
        gram = self.strips[0].new_empty(n, n)
        for strip, (start, stop) in zip(self.strips, strips_of(n), strict=True):
            torch.sum(strip, 0, out=gram[start:stop, :stop])
        return mirror(gram)

    def scores(self, root: Tensor, sizes: Sequence[int]) -> Tensor:
        """Scores of tensors of these sizes by slot, (tensors, slots), from R."""
        table = root.new_zeros(len(sizes), len(self.strips[0]))
        for strip, (start, stop) in zip(self.strips, strips_of(len(root)), strict=True):
            for first, last in blocks_of(stop - start, max(LEAST_READ, READ_PIECE // (len(sizes) * stop))):
                top = start + first
                Q = torch.stack([part[top : start + last] @ part[:stop].T for part in root.split(sizes, 1)]).tril_(top)
                Q.diagonal(top, 1, 2).mul_(0.5)
                table.addmm_(Q.flatten(1), strip[:, first:last].flatten(1).T, alpha=2)
        return table.clamp_(min=0)  # what is 0 may come out at less, by rounding


def _by_slot(blocks: Sequence[RowBlock], num_slots: int) -> Iterator[RowBlock | None]:
    """Yield the rows of every slot; those of a group stay together where groups hold the same slots."""
    by_group = [block.slots.unflatten(0, (len(block.filled), -1)) for block in blocks]
    if not all(bool((slots == slots[0]).all()) for slots in by_group):
        blocks = [RowBlock(block.rows, block.slots, block.filled.any(0, keepdim=True)) for block in blocks]
    indices = [
        block.slots.argsort(stable=True).split(block.slots.bincount(minlength=num_slots).tolist()) for block in blocks
    ]
    for places in zip(*indices, strict=True):
        parts = [
            RowBlock(block.rows[place], block.slots[place], block.filled)
            for block, place in zip(blocks, places, strict=True)
            if len(place)
        ]
        yield joined(parts) if parts else None
