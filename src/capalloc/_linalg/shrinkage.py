"""(gram + penalty)^-1 on the range of a Gram matrix: the linear algebra of ridge regression, on either side.

Index convention: J is (rows, params); gram is K = J J' or S = J' J, which have the same eigenvalues but for zeros.
With M = (gram + penalty)^-1 the hat matrix is H = K M = J M J', and its trace is sum s / (s + penalty).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh


@dataclass(frozen=True)
class Shrunk:
    """The inverse of a Gram matrix plus a penalty, on the range of the Gram matrix, and the eigenvalues that count."""

    inverse: Tensor
    values: Tensor  # in decreasing order
    dropped: float  # the largest that counts as zero

    @property
    def rank(self) -> int:
        """Number of eigenvalues that count."""
        return len(self.values)


def shrink(gram: Tensor, penalty: float, size: int) -> Shrunk:
    """Return (gram + penalty)^-1 on its range; eigenvalues up to size * eps * (the largest) count as zero.

    Args:
        gram: symmetric, positive semi-definite.
        penalty: non-negative.
        size: the larger side of J.

    """
    values, vectors = (part.flip(-1) for part in eigh(gram))
    keep = values > size * torch.finfo(gram.dtype).eps * values[0].clamp(min=0)
    kept, axes = values[keep], vectors[:, keep]
    rest = values[~keep]
    return Shrunk((axes / (kept + penalty)) @ axes.T, kept, max(float(rest.max()), 0.0) if len(rest) else 0.0)
