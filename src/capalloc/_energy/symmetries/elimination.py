"""Sparse homogeneous equations with small integer coefficients, solved a whole layer at a time.

Relations between channels have up to four terms, and the latest channel in a relation is made of earlier ones.
Taking that one out of every relation at once is a triangular substitution, done by products of sparse matrices;
coefficients stay small integers (or halves), which floating point holds exactly, so no tolerance decides a rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, eye_array

#: Coefficients that are not exactly 0 by rounding of thirds and the like; all others are 1/2 at least.
COEFFICIENT_ROUNDING = 1e-9


def eliminate(equations: csr_array, limit: int) -> tuple[csr_array, NDArray[np.bool_]] | None:
    """Solve equations @ x = 0.

    Args:
        equations: coefficients, (equations, unknowns).
        limit: numbers that the solution may take.

    Returns:
        (solution, removed): x = solution @ x, where columns of removed unknowns are empty; their number is the
        rank. None if it takes more than `limit` numbers.

    """
    number = equations.shape[1]
    solution = eye_array(number, format="csr")
    removed = np.zeros(number, dtype=bool)
    while True:
        equations = _cleaned(equations)
        if not equations.shape[0]:
            return solution, removed
        chosen, pivots = _one_for_each_pivot(equations)
        removed[pivots] = True
        step = _substitution(equations[chosen], pivots, np.flatnonzero(~removed))
        while len(step.indices) and removed[step.indices].any():
            step = step @ step
            if step.nnz > limit:
                return None
        rest = np.ones(equations.shape[0], dtype=bool)
        rest[chosen] = False
        equations, solution = equations[rest] @ step, solution @ step
        if solution.nnz > limit:
            return None


def _cleaned(equations: csr_array) -> csr_array:
    equations.data[abs(equations.data) < COEFFICIENT_ROUNDING] = 0
    equations.eliminate_zeros()
    equations = equations[np.diff(equations.indptr) > 0]
    equations.sort_indices()
    return equations


def _one_for_each_pivot(equations: csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose for each unknown that is the last of an equation the shortest one, those with coefficient 1 first."""
    last = equations.indptr[1:] - 1
    pivot, leading = equations.indices[last], abs(equations.data[last])
    order = np.lexsort((np.diff(equations.indptr), leading != 1, pivot))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(pivot[order]) > 0
    return order[first], pivot[order[first]].astype(np.int64)


def _substitution(equations: csr_array, pivots: NDArray[np.int64], kept: NDArray[np.int64]) -> csr_array:
    """The identity on the unknowns that are kept, and the pivots in terms of earlier unknowns."""
    number = equations.shape[1]
    entries = equations.tocoo()
    leading = equations.data[equations.indptr[1:] - 1]
    earlier = entries.col != pivots[entries.row]
    rows = np.concatenate([kept, pivots[entries.row[earlier]]])
    cols = np.concatenate([kept, entries.col[earlier]])
    data = np.concatenate([np.ones(len(kept)), -entries.data[earlier] / leading[entries.row[earlier]]])
    return coo_array((data, (rows, cols)), shape=(number, number)).tocsr()
