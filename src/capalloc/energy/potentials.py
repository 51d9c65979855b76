"""How many ways there are to rescale: components, relations and forced ties -> independent potentials.

Index convention: a component is a set of labels that ties join, component 0 that of GROUND (and of NOTHING). A
relation w - r - w' + r' = 0 is a row of components (w, r, w', r'). Relations are solved by elimination in exact
arithmetic, so the count of symmetries is an integer that no tolerance decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.sparse import coo_array, csc_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from capalloc.energy.elimination import Elimination, Form, eliminate
from capalloc.energy.relations import Sharing, relations

#: Entries of the largest dense block whose freedom is shared out by leverage; above it the count stays exact,
#: but each symmetry is put whole on one of its components.
DENSE_LIMIT = 4_000_000
#: Terms that elimination may handle, about ten seconds; beyond it relations are replaced by ties.
WORK_LIMIT = 20_000_000
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Potentials:
    """Component of every label, 0 for what cannot be rescaled, and what binds components."""

    component: Tensor  # (labels,)
    number: int  # of components, that of GROUND included
    sharing: tuple[Sharing, ...]
    forced: Integers  # (ties, 2) components tied for want of a finer description
    basis: csr_array  # (components, free choices): every potential in terms of free ones, all components alive
    exact: bool  # False where the forced ties cost symmetries

    def freedom(self, through: Tensor) -> Tensor:
        """How much of each component is free to be rescaled, from 0 to 1; the sum is the number of symmetries.

        The leverage of each component in the space of potentials, in the metric of the path energy that passes
        the component. Components that no path passes are nobody's loss and bind nothing.

        Args:
            through: path energy through each component, (components,).

        """
        energy = through.numpy()
        alive = energy > 0
        basis = self.basis
        if not alive[1:].all() and (self.sharing or len(self.forced)):
            alive[0] = True
            basis, _ = solve(self.number, relations(self.sharing, self.component.numpy(), alive), self._bound(alive))
            alive[0] = False
        free = np.zeros(self.number)
        where = np.flatnonzero(alive)
        basis = basis[where].tocsc()
        for rows, columns in _blocks(basis):
            if len(rows) == 1:
                free[where[rows]] = 1.0
                continue
            block = basis[:, columns][rows]
            if len(rows) * len(columns) > DENSE_LIMIT:
                free[where[rows[_pivots(block)]]] = 1.0
            else:
                free[where[rows]] = _leverage(block.toarray(), energy[where[rows]])
        return torch.from_numpy(free)

    def _bound(self, alive: NDArray[np.bool_]) -> Integers:
        return self.forced[alive[self.forced].all(1)]


def potentials(roots: Integers, sharing: tuple[Sharing, ...], forced: Integers) -> Potentials:
    """Potentials of labels whose ties are known, roots[label] being the smallest label of its component."""
    names, component = np.unique(np.maximum(roots, 1), return_inverse=True)  # NOTHING counts with GROUND
    component = component.reshape(-1)
    forced = np.unique(np.sort(component[forced], 1), axis=0)
    rows = relations(sharing, component, np.ones(len(names), dtype=bool))
    basis, exact = solve(len(names), rows, forced)
    return Potentials(torch.from_numpy(component).long(), len(names), sharing, forced, basis, exact)


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


def solve(number: int, rows: Integers, forced: Integers) -> tuple[csr_array, bool]:
    """Every component's potential in terms of free ones, and whether the forced ties follow from the relations."""
    roots, forms = _solved(np.arange(number), rows)
    exact = forms is not None
    if forms is None:  # a rescaling that treats both places alike satisfies every relation
        roots, forms = joined(roots, rows.reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 2)), {}
    elif (roots[forced[:, 0]] != roots[forced[:, 1]]).any():
        exact = False
    if not exact:
        roots, again = _solved(joined(roots, forced), rows)
        forms = again or {}
    return _basis(roots, forms), exact


def _solved(roots: Integers, rows: Integers) -> tuple[Integers, dict[int, Form] | None]:
    """Ties that relations imply, and the potentials that depend on others; None where that is too much work."""
    roots, (names, signs) = _collapse(roots, rows)
    # In the order of the network, in which a channel's potential follows from few others.
    order = np.argsort(names[:, 3], kind="stable")
    equations = (
        {name: sign for name, sign in zip(entries, row, strict=True) if sign}
        for entries, row in zip(names[order].tolist(), signs[order].tolist(), strict=True)
    )
    forms = eliminate(equations, WORK_LIMIT)
    return (roots, None) if forms is None else _equal_forms(roots, forms)


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


def _equal_forms(roots: Integers, forms: dict[int, Form]) -> tuple[Integers, dict[int, Form]]:
    """Tie the labels whose potentials came out equal."""
    named: dict[tuple[tuple[int, object], ...], int] = {(): 0}
    pairs = []
    left = {}
    for label, form in forms.items():
        key = tuple(sorted(form.items()))
        same = key[0][0] if len(key) == 1 and key[0][1] == 1 else named.setdefault(key, label)
        if same == label:
            left[label] = form
        else:
            pairs.append((same, label))
    return (joined(roots, np.array(pairs)) if pairs else roots), left


def _basis(roots: Integers, forms: dict[int, Form]) -> csr_array:
    """Row k: the potential of component k as a combination of free ones."""
    free = roots == np.arange(len(roots))
    free[0] = False
    free[list(forms)] = False
    column = np.cumsum(free) - 1
    rows, columns, entries = [np.flatnonzero(free)], [column[free]], [np.ones(int(free.sum()))]
    listed = [(name, column[other], float(c)) for name, form in forms.items() for other, c in form.items()]
    if listed:
        more = np.array(listed)
        rows.append(more[:, 0].astype(np.int64))
        columns.append(more[:, 1].astype(np.int64))
        entries.append(more[:, 2])
    shape = (len(roots), int(free.sum()))
    basis = coo_array((np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return basis.tocsr()[roots]


def _blocks(basis: csc_array) -> list[tuple[Integers, Integers]]:
    """Rows and columns that hang together."""
    rows, columns = basis.shape
    found = basis.tocoo()
    graph = coo_array((np.ones(len(found.data)), (found.row, found.col + rows)), shape=(rows + columns,) * 2)
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    split = ((piece[piece < rows], piece[piece >= rows] - rows) for piece in pieces)
    return [(r, c) for r, c in split if len(r) and len(c)]


def _pivots(block: csc_array) -> list[int]:
    """Rows of which all others are combinations."""
    rows = block.tocsr()
    found = Elimination()
    spans = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    forms = (dict(zip(rows.indices[a:b].tolist(), map(round, rows.data[a:b]), strict=True)) for a, b in spans)
    return [k for k, form in enumerate(forms) if found.add(form)]


def _leverage(block: NDArray[np.float64], energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Diagonal of the projector onto the block's range in the metric of the energy, whatever its condition."""
    if np.linalg.matrix_rank(block) < block.shape[1]:
        _, _, order = qr(block, mode="economic", pivoting=True)
        block = block[:, order[: np.linalg.matrix_rank(block)]]
    orthonormal, _ = np.linalg.qr(np.sqrt(energy / energy.max())[:, None] * block)
    leverage: NDArray[np.float64] = (orthonormal**2).sum(1)
    return leverage
