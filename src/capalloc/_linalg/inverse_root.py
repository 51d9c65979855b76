"""The inverse root of a block-diagonal approximation of G: R with R R' its pseudo-inverse, tensor by tensor.

Index convention: parameter vectors are (k, params), all tensors flattened side by side; R' takes them to the blocks'
own coordinates, of the same number, and R takes them back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from capalloc._linalg.kronecker import Kronecker, turn

#: Variances below this share of their tensor's largest are taken for zero: samples in float32 leave as much of noise.
SMALLEST = 1e-10


@dataclass(frozen=True)
class InverseRoot:
    """R = B diag(variance)^(-1/2) for every block, B its basis."""

    blocks: Kronecker

    @cached_property
    def scales(self) -> tuple[Tensor, ...]:
        """Inverse roots of the variances, zero where there is none."""
        found = []
        largest = [float(block.diagonal.max()) if block.diagonal.numel() else 0.0 for block in self.blocks.blocks]
        for block, own in zip(self.blocks.blocks, largest, strict=True):
            limits = torch.finfo(block.diagonal.dtype)
            # Beside the largest of all, the squares of rounding: of a bias before a norm there is nothing else.
            kept = block.diagonal > max(SMALLEST * own, limits.eps**2 * max(largest), limits.tiny)
            found.append(torch.where(kept, block.diagonal, 1.0).rsqrt() * kept)
        return tuple(found)

    def pull(self, vectors: Tensor) -> Tensor:
        """R' v."""
        return self._by_block(vectors, inward=True)

    def push(self, vectors: Tensor) -> Tensor:
        """R v."""
        return self._by_block(vectors, inward=False)

    def _by_block(self, vectors: Tensor, *, inward: bool) -> Tensor:
        sizes = [math.prod(block.shape) for block in self.blocks.blocks]
        parts = []
        for block, scale, part in zip(self.blocks.blocks, self.scales, vectors.split(sizes, 1), strict=True):
            tensor = part.to(scale).reshape(-1, *block.shape)
            if inward:
                tensor = turn(tensor, block.bases) * scale
            else:
                tensor = turn(tensor * scale, tuple(None if basis is None else basis.T for basis in block.bases))
            parts.append(tensor.flatten(1).to(vectors))
        return torch.cat(parts, 1)


def rank_of_sample(sample: Tensor) -> int:
    """Return the rank of random combinations of rows, (k, params): that of all rows, where k is larger.

    Singular values up to max(k, params) * eps * (the largest) are zero.
    """
    values = torch.linalg.svdvals(sample)
    least = max(sample.shape) * torch.finfo(sample.dtype).eps * values[0]
    return int((values > least).sum())
