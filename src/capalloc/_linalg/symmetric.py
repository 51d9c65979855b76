"""Symmetric matrices: their eigenvectors; products, of which the lower triangle alone is made, block by block.

Index convention: X is (n, k) and its Gram matrix X X' is (n, n). A block's products are taken in the dtype of X and
added up in the dtype of the Gram matrix, so that float32 products can be summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

#: Rows of a block of the triangle, at least and at most: products of these heights run at full speed ...
LEAST_ROWS, MOST_ROWS = 128, 512
#: ... and this many blocks or more waste little above the diagonal.
LEAST_BLOCKS = 8
#: Products of a lower precision that are added up in it before their sum is added to the Gram matrix.
ROUNDED_TERMS = 512
#: Rows and columns of a tile that is transposed at once: it stays in a core's cache.
TRANSPOSED_TILE = 256


def blocks_of(n: int, size: int = MOST_ROWS) -> Iterator[tuple[int, int]]:
    """Starts and stops of blocks of `size`."""
    return ((start, min(start + size, n)) for start in range(0, n, size))


def strips_of(n: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of the blocks of rows that the triangle of a matrix (n, n) is made in."""
    return blocks_of(n, min(MOST_ROWS, max(LEAST_ROWS, -(-n // LEAST_BLOCKS))))


def add_product(out: Tensor, a: Tensor, b: Tensor, fresh: bool = False) -> None:
    """out += a b in the dtype of `out`, or out = a b where it is `fresh`, without another matrix of its size."""
    if out.dtype == a.dtype:
        if fresh:
            torch.mm(a, b, out=out)
        else:
            out.addmm_(a, b)
        return
    if fresh:
        out.zero_()
    for first, last in blocks_of(a.shape[1], ROUNDED_TERMS):
        for start, stop in blocks_of(len(out)):
            out[start:stop] += a[start:stop, first:last] @ b[first:last]


def add_gram(out: Tensor, X: Tensor, fresh: bool = False) -> None:
    """Lower triangle of out += X X'; blocks on the diagonal are filled whole."""
    for start, stop in strips_of(len(X)):
        add_product(out[start:stop, :stop], X[start:stop], X[:stop].T, fresh)


def mirror(out: Tensor) -> Tensor:
    """Copy the lower triangle to the upper one, in place."""
    n = len(out)
    for start, stop in blocks_of(n, TRANSPOSED_TILE):
        for first, last in blocks_of(start, TRANSPOSED_TILE):
            out[first:last, start:stop] = out[start:stop, first:last].T
        corner = out[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return out


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix (n, n), by another LAPACK if torch's fails.

    Torch's does not converge on some matrices with many rows of zeros, as 3 x 3 kernels on maps of one pixel make them.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite.

    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if not matrix.isfinite().all():
            raise
        values, vectors = (torch.from_numpy(part).to(matrix) for part in np.linalg.eigh(matrix.numpy(force=True)))
    return values, vectors
