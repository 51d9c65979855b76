"""Independent potentials, the ways there are to rescale: from components and relations.

Index convention: a component is a set of labels that ties join, component 0 that of GROUND (and of NOTHING). A
relation w - r - w' + r' = 0 is a row of components (w, r, w', r').
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from capalloc._energy.symmetries.elimination import eliminate
from capalloc._energy.symmetries.relations import GROUND, Sharing, relations

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """Limits of what counting symmetries holds in memory; beyond them it is coarser, and says so."""

    #: Labels that the classes of one map take; beyond it positions are treated alike, which is a lower bound.
    classes: int = 4_000_000
    #: Weights of a kernel times classes, which are related entry by entry; beyond it as for `classes`.
    uses: int = 20_000_000
    #: Numbers that the solution of the relations takes; beyond it relations are replaced by ties: a lower bound.
    solution: int = 20_000_000
    #: Entries of a dense block whose freedom is shared out by leverage; above it the count stays exact, but each
    #: symmetry is put whole on one of its components.
    leverage: int = 4_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Potentials:
    """Component of every label, 0 for what cannot be rescaled, and what binds components."""

    component: Tensor  # (labels,)
    number: int  # of components, that of GROUND included
    sharing: tuple[Sharing, ...]
    basis: csr_array  # (components, free choices): every potential in terms of free ones, all components alive
    exact: bool  # False where labels were tied for want of a finer description
    limits: Limits

    def freedom(self, through: Tensor) -> Tensor:
        """Share of each component that is free to be rescaled, from 0 to 1; the sum is the number of symmetries.

        The leverage of each component in the space of potentials, in the metric of the path energy that passes
        the component. Components that no path passes are nobody's loss and bind nothing.

        Args:
            through: path energy through each component, (components,).

        """
        energy = through.numpy()
        alive = energy > 0
        basis = self.basis
        if self.sharing and not alive[1:].all():
            known = alive.copy()
            known[0] = True  # GROUND
            basis, _ = solve(self.number, relations(self.sharing, self.component.numpy(), known), self.limits)
        alive[0] = False
        free = np.zeros(self.number)
        where = np.flatnonzero(alive)
        basis = basis[where]
        single, shares = _single(basis, energy[where])
        free[where[single]] = shares
        for rows, block in _blocks(basis, np.setdiff1d(np.arange(len(where)), single)):
            if block.shape[0] * block.shape[1] > self.limits.leverage:
                free[where[rows[_pivots(block.T.tocsr())]]] = 1.0
            else:
                free[where[rows]] = _leverage(block, energy[where[rows]])
        return torch.from_numpy(free)

    def equal(self, pairs: Integers) -> bool:
        """Tell whether the labels of each pair rescale alike."""
        first, second = self.component.numpy()[pairs].T
        return not (self.basis[first] - self.basis[second]).count_nonzero()


def potentials(
    roots: Integers, sharing: Sequence[Sharing], exact: bool = True, limits: Limits = DEFAULT_LIMITS
) -> Potentials:
    """Potentials of labels whose ties are known, roots[label] being the smallest label of its component."""
    names, component = np.unique(np.maximum(roots, GROUND), return_inverse=True)  # NOTHING counts with GROUND
    component = component.reshape(-1)
    rows = relations(sharing, component, np.ones(len(names), dtype=bool))
    basis, solved = solve(len(names), rows, limits)
    return Potentials(torch.from_numpy(component).long(), len(names), tuple(sharing), basis, exact and solved, limits)


def joined(roots: Integers, pairs: Integers) -> Integers:
    """Each label's smallest tied label, after more ties."""
    ends = roots[pairs]
    ends = ends[ends[:, 0] != ends[:, 1]]
    if not len(ends):
        return roots
    names, index = np.unique(ends, return_inverse=True)
    index = index.reshape(-1, 2)
    graph = coo_array((np.ones(len(index)), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
    number, group = connected_components(graph, directed=False)
    smallest = np.full(number, np.iinfo(np.int64).max)
    np.minimum.at(smallest, group, names)
    new = np.arange(len(roots))
    new[names] = smallest[group]
    return new[roots]


def solve(number: int, rows: Integers, limits: Limits = DEFAULT_LIMITS) -> tuple[csr_array, bool]:
    """Every component's potential in terms of free ones, and whether relations did not have to become ties."""
    basis = _solved(np.arange(number), rows, limits.solution)
    if basis is not None:
        return basis, True
    # A rescaling that treats both places alike satisfies every relation.
    alike = joined(np.arange(number), rows.reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 2))
    basis = _solved(alike, rows[:0], len(alike))
    assert basis is not None
    return basis, False


def _solved(roots: Integers, rows: Integers, limit: int) -> csr_array | None:
    """Potentials that ties and relations allow, (components, free ones); None where that is too much to hold."""
    roots, (names, signs) = _collapse(roots, rows)
    row, entry = names.nonzero()
    shape = (len(names), len(roots))
    equations = coo_array((signs[row, entry].astype(float), (row, names[row, entry])), shape=shape).tocsr()
    found = eliminate(equations, limit)
    if found is None:
        return None
    solution, removed = found
    free = (roots == np.arange(len(roots))) & ~removed
    free[0] = False
    return solution[:, np.flatnonzero(free)][roots]


def _collapse(roots: Integers, rows: Integers) -> tuple[Integers, tuple[Integers, Integers]]:
    """Turn relations that are ties after all, a - b = 0 or a = 0, into ties until none is left.

    Returns the relations that stay: components and their coefficients, (relations, 4) each, coefficient 0 first.
    """
    labels, signs = rows, np.broadcast_to(np.array([1, -1, -1, 1]), rows.shape)
    while True:
        labels, signs = _distinct(roots[labels], signs)
        number = (signs != 0).sum(1)
        tie = (number == 1) | ((number == 2) & (signs.sum(1) == 0))
        if not tie.any():
            return roots, (labels[number > 0], signs[number > 0])
        pairs = labels[tie][:, 2:].copy()
        pairs[number[tie] == 1, 0] = 0
        labels, signs = labels[~tie & (number > 0)], signs[~tie & (number > 0)]
        roots = joined(roots, pairs)


def _distinct(labels: Integers, signs: Integers) -> tuple[Integers, Integers]:
    """Relations with equal labels added up, those of GROUND left out, entries in order, each relation once."""
    order = np.argsort(labels, axis=1, kind="stable")
    labels = np.take_along_axis(labels, order, 1)
    signs = np.take_along_axis(signs, order, 1).copy()
    for k in (3, 2, 1):
        same = labels[:, k] == labels[:, k - 1]
        signs[same, k - 1] += signs[same, k]
        signs[same, k] = 0
    signs[labels == 0] = 0
    labels = np.where(signs == 0, 0, labels)
    order = np.argsort(labels, axis=1, kind="stable")
    labels, signs = np.take_along_axis(labels, order, 1), np.take_along_axis(signs, order, 1)
    signs = signs * np.where(signs[:, 3:] < 0, -1, 1)
    half = [
        ((labels[:, k] << 4 | signs[:, k] + 4) << 31) | (labels[:, k + 1] << 4 | signs[:, k + 1] + 4) for k in (0, 2)
    ]
    order = np.lexsort(half)
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = np.diff(half[0][order]).astype(bool) | np.diff(half[1][order]).astype(bool)
    return labels[order[keep]], signs[order[keep]]


def _single(basis: csr_array, energy: NDArray[np.float64]) -> tuple[Integers, NDArray[np.float64]]:
    """Rows that hold one free choice, no row with several of which holds it too, and their leverage."""
    found = basis.tocoo()
    several = np.diff(basis.indptr)[found.row] > 1
    apart = ~np.isin(found.col, found.col[several])
    weight = energy[found.row] * found.data**2
    whole = np.bincount(found.col, weight, minlength=basis.shape[1])[found.col]
    return found.row[apart].astype(np.int64), weight[apart] / whole[apart]


def _blocks(basis: csr_array, rows: Integers) -> Iterator[tuple[Integers, csr_array]]:
    """Those of the rows that hang together, and their part of the basis."""
    found = basis[rows].tocoo()
    size = len(rows) + basis.shape[1]
    joint = coo_array((np.ones(len(found.row)), (found.row, found.col + len(rows))), shape=(size, size))
    _, group = connected_components(joint, directed=False)
    of_row = group[: len(rows)]
    order = np.argsort(of_row, kind="stable")
    for piece in np.split(order, np.flatnonzero(np.diff(of_row[order])) + 1) if len(order) else []:
        block = basis[rows[piece]]
        yield rows[piece], block[:, np.unique(block.indices)]


def _pivots(equations: csr_array) -> Integers:
    """Choose as many independent columns as there are."""
    found = eliminate(equations, np.iinfo(np.int64).max)
    assert found is not None
    return np.flatnonzero(found[1])


def _leverage(block: csr_array, energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Diagonal of the projector onto the block's range in the metric of the energy."""
    independent = block.toarray()[:, _pivots(block)]
    orthonormal, _ = np.linalg.qr(np.sqrt(energy / energy.max())[:, None] * independent)
    leverage: NDArray[np.float64] = (orthonormal**2).sum(1)
    return leverage
