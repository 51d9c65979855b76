"""The inverse root of an approximation of G: R with R R' the inverse of blocks, and of a few rows beside them.

Index convention: parameter vectors are (k, params), all tensors flattened side by side; R' takes them to the blocks'
own coordinates, of the same number, and R takes them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from capalloc._linalg.kronecker import Kronecker, KroneckerBlock, turn
from capalloc._linalg.symmetric import eigh

#: Variances below this share of their tensor's largest are taken for zero: samples in float32 leave as much of noise.
SMALLEST = 1e-10
#: Units of rounding in a sum of constraints.
UNITS_OF_ROUNDING = 16


@dataclass(frozen=True)
class RowsBeside:
    """(I + V'V)^(-1/2) for a few rows V, (m, params)."""

    rows: Tensor
    share: float = 1.0  # of all such rows

    @cached_property
    def inner(self) -> Tensor:
        """X with (I + V'V)^(-1/2) = I + V'X V."""
        values, vectors = eigh((self.rows @ self.rows.T).double())
        root = (1 + values.clamp_min(0)).sqrt()
        return torch.as_tensor((vectors / -(root * (1 + root))) @ vectors.T)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply vectors, (k, params)."""
        inside = (vectors.to(self.rows) @ self.rows.T).double() @ self.inner
        return vectors + (inside.to(self.rows) @ self.rows).to(vectors)


@dataclass(frozen=True)
class InverseRoot:
    """R = B diag(variance + ridge)^(-1/2) for every block, B its basis; times what rows in these coordinates add."""

    blocks: Kronecker
    beside: RowsBeside | None = None
    ridge: float = 0.0

    def with_rows(self, rows: Tensor, share: float = 1.0) -> InverseRoot:
        """Return the root for blocks and rows'rows, (m, params), which are a `share` of all such rows."""
        return replace(self, beside=RowsBeside(self.pull(rows), share) if len(rows) else None)

    def completed(self, image: Tensor) -> InverseRoot:
        """Return the root with the variances of `image`, (k, params), where the samples of the blocks saw none.

        The image is C' xi of all examples, whose squares have the mean diag(G) in any basis: a unit that none of the
        sampled examples opens is in it. With few images each variance is drawn to the mean of those of its tensor.
        """
        filled, largest = [], max(self._largest)
        for block, scale, tensor in self._by_block(image):
            squares = turn(tensor, block.bases).square().mean(0)
            unseen = (scale == 0) & (squares > (UNITS_OF_ROUNDING * torch.finfo(scale.dtype).eps) ** 2 * largest)
            mean = squares[unseen].mean() if bool(unseen.any()) else squares.new_zeros(())
            drawn = (len(image) * squares + mean) / (len(image) + 1)
            filled.append(replace(block, diagonal=torch.where(unseen, drawn, block.diagonal)))
        return replace(self, blocks=Kronecker(tuple(filled)))

    @cached_property
    def scales(self) -> tuple[Tensor, ...]:
        """Inverse roots of the variances, zero where there is neither one nor a ridge."""
        if self.ridge:
            return tuple((block.diagonal + self.ridge).rsqrt() for block in self.blocks.blocks)
        found = []
        largest = self._largest
        for block, own in zip(self.blocks.blocks, largest, strict=True):
            limits = torch.finfo(block.diagonal.dtype)
            # Beside the largest of all, the squares of rounding: of a bias before a norm there is nothing else.
            kept = block.diagonal > max(SMALLEST * own, limits.eps**2 * max(largest), limits.tiny)
            found.append(torch.where(kept, block.diagonal, 1.0).rsqrt() * kept)
        return tuple(found)

    @property
    def _largest(self) -> list[float]:
        return [float(block.diagonal.max()) if block.diagonal.numel() else 0.0 for block in self.blocks.blocks]

    def pull(self, vectors: Tensor) -> Tensor:
        """R' v."""
        found = vectors.new_empty(vectors.shape)
        for into, (block, scale, tensor) in zip(self._split(found), self._by_block(vectors), strict=True):
            into.copy_((turn(tensor, block.bases) * scale).flatten(1))
        return found if self.beside is None else self.beside(found)

    def push(self, vectors: Tensor) -> Tensor:
        """R v."""
        turned = vectors if self.beside is None else self.beside(vectors)
        found = turned.new_empty(turned.shape)
        for into, (block, scale, tensor) in zip(self._split(found), self._by_block(turned), strict=True):
            back = tuple(None if basis is None else basis.T for basis in block.bases)
            into.copy_(turn(tensor * scale, back).flatten(1))
        return found

    def square(self, vectors: Tensor) -> Tensor:
        """R R' v."""
        return self.push(self.pull(vectors))

    def _by_block(self, vectors: Tensor) -> Iterator[tuple[KroneckerBlock, Tensor, Tensor]]:
        """Yield every block, its scale, and its part of the vectors, (k, *axes)."""
        for block, scale, part in zip(self.blocks.blocks, self.scales, self._split(vectors), strict=True):
            yield block, scale, part.to(scale).reshape(-1, *block.shape)

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The blocks' parts of vectors, (k, params)."""
        parts: tuple[Tensor, ...] = vectors.split([math.prod(block.shape) for block in self.blocks.blocks], 1)
        return parts
