"""How many ways there are to rescale: labels, ties and relations -> independent potentials.

Index convention: a component is a set of labels with one potential, component 0 that of GROUND (and of NOTHING).
A relation is a row of small integers over components: the sum of coefficient * potential is 0. Relations are
solved by elimination in exact arithmetic, so the count of symmetries is an integer that no tolerance decides.
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

NOTHING, GROUND = 0, 1
#: Entries of the largest dense block whose freedom is shared out by leverage; above it the count stays exact,
#: but each symmetry is put whole on one of its components.
DENSE_LIMIT = 4_000_000
#: Terms that elimination may handle, about ten seconds; beyond it relations are replaced by ties.
WORK_LIMIT = 20_000_000
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Potentials:
    """Component of every label, 0 for what cannot be rescaled, and the potentials they can take."""

    component: Tensor  # (labels,)
    basis: csr_array  # (components, free choices): every potential as a combination of free ones
    exact: bool = True  # False where labels were tied for want of a finer description

    @property
    def number(self) -> int:
        """Number of components, that of GROUND included."""
        return int(self.basis.shape[0])

    def freedom(self, through: Tensor) -> Tensor:
        """How much of each component is free to be rescaled, from 0 to 1; the sum is the number of symmetries.

        The leverage of each component in the space of potentials, in the metric of the path energy that passes
        the component; components that no path passes are nobody's loss.

        Args:
            through: path energy through each component, (components,).

        """
        energy = through.numpy()
        free = np.zeros(self.number)
        alive = energy > 0
        basis = self.basis[alive].tocsc()
        where = np.flatnonzero(alive)
        for rows, columns in _blocks(basis):
            block = basis[:, columns][rows]
            if len(rows) == 1:
                free[where[rows]] = 1.0
            elif len(rows) * len(columns) > DENSE_LIMIT:
                free[where[rows[_pivots(block)]]] = 1.0
            else:
                free[where[rows]] = _leverage(block.toarray(), energy[where[rows]])
        return torch.from_numpy(free)


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


def settle(roots: Integers, balances: Integers, forced: Integers) -> Potentials:
    """Potentials that ties and relations leave, with the forced ties added, and whether those cost anything."""
    roots, forms = _solve(roots, balances)
    exact = forms is not None
    if forms is None:  # a rescaling that treats both places alike satisfies every relation
        roots, forms = joined(roots, balances.reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 2)), {}
    elif (roots[forced[:, 0]] != roots[forced[:, 1]]).any():
        exact = False
    if not exact:
        roots, again = _solve(joined(roots, forced), balances)
        forms = again or {}
    return _potentials(roots, forms, exact)


def _solve(roots: Integers, balances: Integers) -> tuple[Integers, dict[int, Form] | None]:
    """Ties that relations imply, and the potentials that depend on others; None where that is too much work."""
    roots, (labels, signs) = _collapse(roots, balances)
    # In the order of the network, in which a channel's potential follows from few others.
    order = np.argsort(labels[:, 3], kind="stable")
    equations = (
        {name: sign for name, sign in zip(names, row, strict=True) if sign}
        for names, row in zip(labels[order].tolist(), signs[order].tolist(), strict=True)
    )
    forms = eliminate(equations, WORK_LIMIT)
    return (roots, None) if forms is None else _equal_forms(roots, forms)


def _collapse(roots: Integers, balances: Integers) -> tuple[Integers, tuple[Integers, Integers]]:
    """Turn relations that are ties after all, a - b = 0 or a = 0, into ties until none is left.

    Returns the relations that stay: labels and their coefficients, (relations, 4) each, coefficient 0 first.
    """
    labels, signs = balances, np.broadcast_to(np.array([1, -1, -1, 1]), balances.shape)
    while True:
        labels, signs = _distinct(roots[labels], signs)
        number = (signs != 0).sum(1)
        tie = (number == 1) | ((number == 2) & (signs.sum(1) == 0))
        if not tie.any():
            return roots, (labels[number > 0], signs[number > 0])
        pairs = labels[tie][:, 2:].copy()
        pairs[number[tie] == 1, 0] = GROUND
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
    signs[labels <= GROUND] = 0
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
    named: dict[tuple[tuple[int, object], ...], int] = {(): GROUND}
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


def _potentials(roots: Integers, forms: dict[int, Form], exact: bool) -> Potentials:
    names, component = np.unique(np.where(roots == NOTHING, GROUND, roots), return_inverse=True)
    number = np.arange(len(names))
    bound = np.isin(names, np.fromiter(forms, np.int64, len(forms)))
    bound[0] = True  # GROUND
    column = np.cumsum(~bound) - 1
    rows, columns, entries = [number[~bound]], [column[~bound]], [np.ones(int((~bound).sum()))]
    at = dict(zip(names.tolist(), number.tolist(), strict=True)) if forms else {}
    listed = [(at[name], column[at[free]], float(c)) for name, form in forms.items() for free, c in form.items()]
    if listed:
        more = np.array(listed)
        rows.append(more[:, 0].astype(np.int64))
        columns.append(more[:, 1].astype(np.int64))
        entries.append(more[:, 2])
    shape = (len(names), int((~bound).sum()))
    basis = coo_array((np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return Potentials(torch.from_numpy(component.reshape(-1)).long(), basis.tocsr(), exact)


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
