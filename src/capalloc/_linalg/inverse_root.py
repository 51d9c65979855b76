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

    def completed(self, turned: Tensor) -> InverseRoot:
        """Return the root with the variances of an image, `turned`, where the samples of the blocks saw none.

        The image is C' xi of all examples, (k, params), whose squares have the mean diag(G) in any basis: a unit that
        none of the sampled examples opens is in it. With few images each variance is drawn to the mean of those of its
        tensor. Variances are filled in where they stand.
        """
        largest = max(self._largest)
        for block, scale, tensor in self._by_block(turned):
            squares = tensor.square().mean(0)
            unseen = (scale == 0) & (squares > (UNITS_OF_ROUNDING * torch.finfo(scale.dtype).eps) ** 2 * largest)
            mean = squares[unseen].mean() if bool(unseen.any()) else squares.new_zeros(())
            drawn = (len(turned) * squares + mean) / (len(turned) + 1)
            torch.where(unseen, drawn, block.diagonal, out=block.diagonal)
        return replace(self)  # which looks for the largest anew

    @cached_property
    def _largest(self) -> list[float]:
        return [float(block.diagonal.max()) if block.diagonal.numel() else 0.0 for block in self.blocks.blocks]

    def _scale(self, block: KroneckerBlock, largest: float) -> Tensor:
        """Inverse roots of variances, zero where there is neither one nor a ridge: soon made, so not held."""
        if self.ridge:
            return (block.diagonal + self.ridge).rsqrt_()
        limits = torch.finfo(block.diagonal.dtype)
        # Beside the largest of all, the squares of rounding: of a bias before a norm there is nothing else.
        kept = block.diagonal > max(SMALLEST * largest, limits.eps**2 * max(self._largest), limits.tiny)
        return torch.where(kept, block.diagonal, 1.0).rsqrt_().mul_(kept)

    def turned(self, vectors: Tensor) -> Tensor:
        """Turn vectors, (k, params), into the bases of the blocks, where they stand."""
        for into, block in zip(self._split(vectors), self.blocks.blocks, strict=True):
            if any(basis is not None for basis in block.bases):
                into.copy_(turn(into.to(block.diagonal).reshape(-1, *block.shape), block.bases).flatten(1))
        return vectors

    def whitened(self, turned: Tensor) -> Tensor:
        """Divide vectors in the bases of the blocks by the roots of variances, where they stand."""
        for into, (_, scale, tensor) in zip(self._split(turned), self._by_block(turned), strict=True):
            into.copy_((tensor * scale).flatten(1))
        return turned if self.beside is None else self.beside(turned)

    def pull(self, vectors: Tensor) -> Tensor:
        """R' v."""
        return self.whitened(self.turned(vectors.clone()))

    def push(self, vectors: Tensor, own: bool = False) -> Tensor:
        """R v, in the place of v where it is our `own`."""
        turned = vectors if self.beside is None else self.beside(vectors)
        found = turned if own else turned.new_empty(turned.shape)
        for into, (block, scale, tensor) in zip(self._split(found), self._by_block(turned), strict=True):
            back = tuple(None if basis is None else basis.T for basis in block.bases)
            into.copy_(turn(tensor * scale, back).flatten(1))
        return found

    def square(self, vectors: Tensor) -> Tensor:
        """R R' v."""
        return self.push(self.pull(vectors))

    def _by_block(self, vectors: Tensor) -> Iterator[tuple[KroneckerBlock, Tensor, Tensor]]:
        """Yield every block, its scale, and its part of the vectors, (k, *axes)."""
        for block, largest, part in zip(self.blocks.blocks, self._largest, self._split(vectors), strict=True):
            yield block, self._scale(block, largest), part.to(block.diagonal).reshape(-1, *block.shape)

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The blocks' parts of vectors, (k, params)."""
        parts: tuple[Tensor, ...] = vectors.split([math.prod(block.shape) for block in self.blocks.blocks], 1)
        return parts
