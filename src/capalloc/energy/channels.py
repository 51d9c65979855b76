"""Which units a rescaling must treat alike: the symmetries of the energy network.

Give every unit a potential a; multiply each free parameter between units by exp(a_written - a_read). Path
energies stay as they are if a = 0 at the inputs, the constant and the outputs (`GROUND`), if units joined
without a free parameter (a residual addition, pooling, a fixed weight) have one potential, and if every use of a
shared parameter asks for the same factor. Each independent choice of potentials is a symmetry and costs one unit
of capacity (docs/theory.md, section 4): a hidden channel, one per residual stream channel.

Labels name potentials. They are integer tensors broadcastable to a unit tensor: 0 for units that carry nothing,
1 for GROUND.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import null_space
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

NOTHING, GROUND = 0, 1
#: Potentials that shared parameters relate are solved for densely; beyond this many they are tied instead.
DENSE_LIMIT = 3000


class Channels:
    """Channel labels, the ties between them, and what shared parameters ask of them."""

    def __init__(self) -> None:
        self.count = 2
        self.exact = True  # False once labels were tied that a more general symmetry might keep apart
        self._pairs: list[Tensor] = []
        self._balances: list[Tensor] = []

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """New labels, one for each entry."""
        size = math.prod(shape)
        labels = torch.arange(self.count, self.count + size).reshape(tuple(shape))
        self.count += size
        return labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Rescale a and b together, entry by entry (broadcast)."""
        pairs = _rows(a, b)
        pairs = pairs[(pairs > NOTHING).all(1) & (pairs[:, 0] != pairs[:, 1])]
        if len(pairs):
            self._pairs.append(torch.unique(pairs, dim=0))

    def balance(self, written: Tensor, read: Tensor, written_too: Tensor, read_too: Tensor) -> None:
        """One parameter in two places: the same difference of potentials, entry by entry (broadcast)."""
        rows = _rows(written, read, written_too, read_too)
        rows = rows[(rows > NOTHING).all(1)]
        if len(rows):
            self._balances.append(torch.unique(rows, dim=0))

    def uniform(self, labels: Tensor, shape: Sequence[int], dims: Iterable[int]) -> Tensor | None:
        """Labels of a tensor of shape `shape` with the axes `dims` cut to length 1, None where they differ."""
        labels, first, dims = _first(labels, shape, dims)
        if bool(((labels != first) & (labels > NOTHING)).any()):
            return None
        return first.expand([1 if k in dims else n for k, n in enumerate(shape)])

    def merge(self, labels: Tensor, shape: Sequence[int], dims: Iterable[int], forced: bool = False) -> Tensor:
        """Tie labels along `dims` and cut those axes to length 1.

        With `forced`, merging labels that differ marks the count of symmetries as a lower bound.
        """
        labels, first, dims = _first(labels, shape, dims)
        if bool(((labels != first) & (labels > NOTHING)).any()):
            self.exact = self.exact and not forced
            self.tie(labels, first)
        return first.expand([1 if k in dims else n for k, n in enumerate(shape)])

    def resolve(self) -> Potentials:
        """Settle all ties: what can be rescaled, and how."""
        pairs = torch.cat(self._pairs) if self._pairs else torch.zeros(0, 2, dtype=torch.long)
        balances = torch.cat(self._balances) if self._balances else torch.zeros(0, 4, dtype=torch.long)
        while True:
            component = _components(self.count, pairs)
            rows = _coefficients(component, balances)
            # Two entries +1 -1 are a tie after all; one entry alone is a tie to GROUND.
            new = _as_pairs(rows[np.diff(rows.indptr) <= 2], component)
            if not len(new):
                break
            pairs = torch.cat([pairs, new])
        related = np.unique(rows.nonzero()[1])
        if len(related) > DENSE_LIMIT:
            self.exact = False
            self._pairs.append(balances[:, [0, 2]])
            self._pairs.append(balances[:, [1, 3]])
            self._balances = []
            return self.resolve()
        return Potentials(component, rows)


@dataclass(frozen=True)
class Potentials:
    """Component of every label, 0 for what cannot be rescaled, and the relations between components."""

    component: Tensor  # (labels,)
    relations: csr_array  # (relations, components)

    @property
    def number(self) -> int:
        """Number of components, that of GROUND included."""
        return int(self.component.max()) + 1

    def freedom(self, through: Tensor) -> Tensor:
        """How much of each component is free to be rescaled, from 0 to 1; the sum is the number of symmetries.

        The leverage of each component in the space of potentials that satisfy the relations, in the metric of
        the path energy that passes the component.

        Args:
            through: path energy through each component, (components,).

        """
        free = (through > 0).to(torch.float64)
        free[0] = 0
        alive = free.numpy() > 0
        # A relation with a component that no path passes binds nothing.
        relations = self.relations[abs(self.relations) @ ~alive == 0]
        related = np.unique(relations.nonzero()[1])
        if len(related):
            weight = np.sqrt(through.numpy()[related])
            basis, _ = np.linalg.qr(weight[:, None] * null_space(relations[:, related].toarray()))
            free[torch.from_numpy(related).long()] = torch.from_numpy((basis**2).sum(1))
        return free


def _rows(*labels: Tensor) -> Tensor:
    return torch.stack([x.reshape(-1) for x in torch.broadcast_tensors(*labels)], dim=1)


def _first(labels: Tensor, shape: Sequence[int], dims: Iterable[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    dims = tuple(d % len(shape) for d in dims)
    labels = labels.reshape((1,) * (len(shape) - labels.ndim) + tuple(labels.shape))
    return labels, labels.amax(dim=dims, keepdim=True) if dims else labels, dims


def _components(count: int, pairs: Tensor) -> Tensor:
    """Connected component of every label; 0 is GROUND's, and NOTHING's too, so that 0 stands for no symmetry."""
    rows = np.concatenate([[NOTHING], pairs[:, 0].numpy()])
    cols = np.concatenate([[GROUND], pairs[:, 1].numpy()])
    graph = coo_array((np.ones(len(rows)), (rows, cols)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    ground = component[GROUND]
    swapped = np.where(component == 0, ground, component)
    return torch.from_numpy(np.where(component == ground, 0, swapped)).long()


def _coefficients(component: Tensor, balances: Tensor) -> csr_array:
    """Relations as rows of coefficients of the components' potentials, those of GROUND and void rows left out."""
    columns = np.unique(component[balances].numpy().reshape(-1, 4), axis=0)
    signs = np.broadcast_to([1, -1, -1, 1], columns.shape)
    rows = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)
    shape = (len(columns), int(component.max()) + 1)
    matrix = coo_array((signs.ravel(), (rows.ravel(), columns.ravel())), shape=shape).tolil()
    matrix[:, 0] = 0
    matrix = matrix.tocsr()
    matrix.eliminate_zeros()
    return matrix[np.diff(matrix.indptr) > 0]


def _as_pairs(ties: csr_array, component: Tensor) -> Tensor:
    """Labels to tie for relations +a -b = 0 or a = 0; others are left."""
    label = np.zeros(int(component.max()) + 1, dtype=int)
    label[component.numpy()[::-1]] = np.arange(len(component))[::-1]  # a label of each component
    label[0] = GROUND
    pairs = []
    for row in range(ties.shape[0]):
        start, stop = ties.indptr[row], ties.indptr[row + 1]
        columns, signs = ties.indices[start:stop], ties.data[start:stop]
        if len(columns) == 1:
            pairs.append((label[columns[0]], GROUND))
        elif signs.sum() == 0:
            pairs.append((label[columns[0]], label[columns[1]]))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
